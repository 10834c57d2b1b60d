"""Train and test adaptive-depth networks.

    python train_adn.py --data-path digits --stem small                           one process
    torchrun --nproc_per_node=4 train_adn.py --model resnet50 --data-path DIR     4 GPUs of one machine
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 train_adn.py …    two machines

Exit codes: 0 done, 2 a mistake to mend (one line says which), 75 stopped by a signal and saved (--resume auto goes on).
"""

import methods
from utils.flags.arguments import parser

if __name__ == "__main__":
    parser(methods).parse_args()  # --help and mistakes are answered before torch, which takes seconds, is imported

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torchvision
from torch import Tensor

import models
import presets
import sampler
from utils import processes, setup
from utils.data.device import OnDevice
from utils.data.loading import Data, eval_loader, load_data, start_workers
from utils.errors import UserError
from utils.evaluate import predict, report, table
from utils.flags.data import fill_defaults
from utils.flags.evaluation import chosen
from utils.train import checkpoint, log, run


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    args = parser(methods).parse_args(argv)
    try:
        if args.from_table:
            print(table.choose_from(args.from_table, budget_of(args)))
            return 0
        processes.connect(args.dist_url, args.world_size)
        log.setup()
        code = (test if args.test_only else predict_images if args.predict else train)(args)
    except (UserError, models.WeightsError) as error:
        if not processes.already_reported(str(error)):
            print(f"train_adn.py: error: {error}", file=sys.stderr)
        return 2
    except RuntimeError:
        if not processes.another_failed():
            raise
        return 2
    processes.leave()
    return code


def train(args: argparse.Namespace) -> int:
    fill_defaults(args)
    data = load_data(args)
    loaders = run.make_loaders(args, data)
    device = processes.join(setup.choose_device(args.device))
    setup.set_up(device, args.seed, args.deterministic)
    model = build(args, len(data.classes), args.train_crop_size, saved_weights(args))
    setup.refuse_single_values(model, loaders.batches.batch_size, args.train_crop_size)
    method = methods.METHODS[args.method](args, model)
    training = run.make_run(args, device, data.classes, model, method, run.Reader(read_checkpoint, models.load_state))
    return run.train(training, data, loaders)


def test(args: argparse.Namespace) -> int:
    """--test-only: one sub-network, several, or the best within a budget."""
    saved = saved_weights(args)
    fill_defaults(args, known_settings(args, saved))
    data = load_data(args)
    if saved and saved.classes is not None and list(saved.classes) != list(data.classes):
        raise UserError(
            f"{saved.source}: was trained on other classes ({some(saved.classes)}) than {data.name} has "
            f"({some(data.classes)}): give the --data-path of its training"
        )
    loader = eval_loader(data, args, sampler.EvalSampler(len(data.val), processes.rank(), processes.world_size()))
    start_workers(loader)
    running = prepare(args, len(data.classes), saved)
    subnets = chosen(running.model, args.skip_cfg or (["all"] if budget_of(args) else None))
    wanted = report.Report(
        facts=facts_of(args, data, running),
        folder=Path(args.output_dir),
        image_size=args.val_crop_size,
        latency_batch=args.latency_batch,
        budget=budget_of(args),
        draw=not args.no_picture,
        published=models.zoo.published(args.model) if len(data.classes) == 1000 else {},
    )
    report.test(running.model, loader, subnets, running.on_device, running.autocast, args.on_corrupt, wanted)
    return 0


def predict_images(args: argparse.Namespace) -> int:
    """--predict: no data needed, the weights know their classes, or how many there are."""
    saved = saved_weights(args)
    fill_defaults(args, known_settings(args, saved))
    if saved is None:
        raise UserError("--predict needs trained weights: give --weights, not --init-from")
    transform = presets.eval_transform(args.val_resize_size, args.val_crop_size, args.interpolation)
    images = predict.Images(Path(args.predict), transform, args.batch_size, args.on_corrupt)
    classes = saved.classes or models.zoo.class_names(models.num_classes(saved.state))
    running = prepare(args, len(classes), saved)
    subnets = chosen(running.model, args.skip_cfg)
    predict.predict(running.model, images, classes, subnets, running.on_device, running.autocast)
    return 0


def budget_of(args: argparse.Namespace) -> table.Budget:
    return table.Budget(args.budget_gmacs, args.budget_latency, args.budget_params)


class Saved(NamedTuple):
    """A file of weights that was read."""

    source: str
    state: dict[str, Tensor]
    classes: list[str] | None  # their names, if the file says them
    settings: dict[str, Any]  # the arguments of the run that wrote it


def saved_weights(args: argparse.Namespace) -> Saved | None:
    """What --weights names or, without training, --resume. Without training only --init-from does without either."""
    testing = args.test_only or args.predict
    path = Path(args.resume)
    if testing and args.resume == "auto":
        path = checkpoint.newest_readable(Path(args.output_dir), read_checkpoint)
        if path is None:
            raise UserError(f"--resume auto: no checkpoint in {args.output_dir}")
    elif not (testing and args.resume):
        if not args.weights:
            if testing and not args.init_from:
                raise UserError("--test-only and --predict need --weights: a file, or the name of a released network")
            return None
        path = models.zoo.weights_file(args.weights, model=args.model, url=args.weights_url, folder=args.weights_dir)
    content = models.read_checkpoint(path)
    state = models.model_state(content, ema=args.model_ema, source=str(path))
    return Saved(str(path), state, content.get("classes"), vars(content.get("args", argparse.Namespace())))


def read_checkpoint(path: Path) -> dict:
    try:
        return models.read_checkpoint(path)
    except models.WeightsError as error:
        raise UserError(str(error)) from None


def known_settings(args: argparse.Namespace, saved: Saved | None) -> dict[str, Any]:
    """Settings that weights were made or released with, for those that the user leaves open."""
    if saved is None:
        return {}
    if saved.settings.get("model", args.model) != args.model:
        raise UserError(f"{saved.source}: is of --model {saved.settings['model']}, not {args.model}")
    names = ("val_resize_size", "val_crop_size", "interpolation", "stem", "patch_size", "window_size")
    return {name: saved.settings.get(name) for name in names} | models.zoo.preprocessing(args.weights)


def build(args: argparse.Namespace, classes: int, image_size: int, saved: Saved | None) -> models.AdaptiveDepth:
    """The network for so many classes, with the weights of --init-from or `saved` if there are any."""
    try:
        model = models.build(
            args.model,
            num_classes=classes,
            stem=args.stem,
            patch_size=args.patch_size,
            window_size=args.window_size,
            image_size=image_size,
            switchable_norms=not args.no_switchable_norms,
        )
    except (ValueError, AssertionError) as error:
        raise UserError(f"--model {args.model}: {error}") from None
    if args.init_from:
        models.load_plain(model, plain_weights(args.init_from, args.model), new_head=True)
    if saved:
        models.load_state(model, saved.state, source=saved.source)
    return model


def plain_weights(name: str, model: str) -> dict | object:
    """What --init-from names: a file, or one of torchvision's enums for this model."""
    if Path(name).exists():
        return models.read_checkpoint(name)
    try:
        return torchvision.models.get_model_weights(model)[name]
    except (KeyError, ValueError):
        raise UserError(f"--init-from {name}: neither a file nor weights that torchvision has of {model}") from None


class Running(NamedTuple):
    """A network on its device, ready to be tested."""

    model: models.AdaptiveDepth
    on_device: OnDevice
    autocast: Any
    precision: str


def prepare(args: argparse.Namespace, classes: int, saved: Saved | None) -> Running:
    device = processes.join(setup.choose_device(args.device))
    setup.set_up(device, args.seed, args.deterministic)
    model = build(args, classes, args.val_crop_size, saved)
    layout = setup.layout_of(model, args.channels_last)
    model.to(device=device, memory_format=layout)
    if args.torch_compile:
        model.compile()
    precision = setup.precision_of(args.amp, args.amp_dtype, device)
    on_device = OnDevice(device, presets.ToFloat(memory_format=layout))
    return Running(model, on_device, setup.autocast_of(precision, device), precision)


def facts_of(args: argparse.Namespace, data: Data, running: Running) -> dict[str, Any]:
    return {
        "model": args.model,
        "weights": args.weights or args.resume,
        "data": data.name,
        "data_path": args.data_path,
        "device": str(running.on_device.device),
        "precision": running.precision,
        "memory_format": str(running.on_device.to_float.memory_format).removeprefix("torch."),
        "compiled": args.torch_compile,
        "averaged_weights": args.model_ema,
    }


def some(classes: list[str]) -> str:
    return f"{len(classes)}: {', '.join(map(str, classes[:3]))}{', …' if len(classes) > 3 else ''}"


if __name__ == "__main__":
    processes.run(main)
