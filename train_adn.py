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
from utils import processes, setup
from utils.data.loading import eval_loader, load_data, refuse_other_classes, start_workers
from utils.errors import UserError
from utils.evaluate import predict, report, table
from utils.flags.data import fill_defaults
from utils.flags.evaluation import chosen
from utils.train import checkpoint, log, run

SHAPE = ("stem", "patch_size", "window_size")  # flags that say how a network is built


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    args = parser(methods).parse_args(argv)
    try:
        if args.from_table:
            print(table.choose_from(args))
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
    machine = start(args)
    model = build(args, len(data.classes), args.train_crop_size, saved_weights(args))
    setup.refuse_another_size(model, args.val_crop_size)
    setup.refuse_single_values(model, loaders.batches.batch_size, args.train_crop_size)
    training = run.make_run(args, machine, data.classes, model, methods.METHODS[args.method](args, model))
    run.resume(training.state, read_checkpoint, models.load_state)
    return run.train(training, data, loaders)


def test(args: argparse.Namespace) -> int:
    """--test-only: one sub-network, several, or the best within a budget."""
    saved = saved_weights(args)
    fill_defaults(args, saved.settings if saved else {})
    data = load_data(args)
    if saved:
        refuse_other_classes(saved.source, saved.classes, data.classes, "give the --data-path of its training")
    loader = eval_loader(data, args, processes.rank(), processes.world_size())
    start_workers(loader)
    machine = start(args)
    model = build(args, len(data.classes), args.val_crop_size, saved)
    published = models.zoo.published(args.model) if len(data.classes) == 1000 else {}
    report.test(args, machine, model, data, loader, saved.source if saved else None, published)
    return 0


def predict_images(args: argparse.Namespace) -> int:
    """--predict: no data needed, the weights know their classes, or how many there are."""
    saved = saved_weights(args)
    if saved is None:
        raise UserError("--predict needs trained weights: give --weights, not --init-from")
    fill_defaults(args, saved.settings)
    transform = presets.eval_transform(args.val_resize_size, args.val_crop_size, args.interpolation)
    classes = saved.classes or models.zoo.class_names(models.num_classes(saved.state))
    data = predict.images_at(Path(args.predict), classes, transform)
    loader = eval_loader(data, args)
    start_workers(loader)
    machine = start(args)
    model = build(args, len(classes), args.val_crop_size, saved)
    batches = machine.place(model, args.channels_last)(loader)
    predict.predict(
        model, data, batches, chosen(model, args.skip_cfg), machine.autocast, strict=args.on_corrupt == "error"
    )
    return 0


class Saved(NamedTuple):
    """A file of weights that was read."""

    source: str
    state: dict[str, Tensor]
    classes: list[str] | None  # their names, if the file says them
    settings: dict[str, Any]  # that they were made or released with, for what the user leaves open


def saved_weights(args: argparse.Namespace) -> Saved | None:
    """What --weights names or, without training, --resume. Without training only --init-from does without either."""
    testing = args.test_only or args.predict
    if testing and args.resume == "auto":
        path = checkpoint.newest_readable(Path(args.output_dir), read_checkpoint)
        if path is None:
            raise UserError(f"--resume auto: no checkpoint in {args.output_dir}")
    elif testing and args.resume:
        path = Path(args.resume)
    elif args.weights:
        path = models.zoo.weights_file(args.weights, model=args.model, url=args.weights_url, folder=args.weights_dir)
    elif testing and not args.init_from:
        raise UserError("--test-only and --predict need --weights: a file, or the name of a released network")
    else:
        return None
    content = read_checkpoint(path)
    state = models.model_state(content, ema=args.model_ema, source=str(path))
    theirs = vars(content.get("args", argparse.Namespace()))
    if testing and theirs.get("model", args.model) != args.model:
        raise UserError(f"{path}: is of --model {theirs['model']}, not {args.model}")
    names = ("val_resize_size", "val_crop_size", "interpolation", *SHAPE)
    settings = {name: theirs.get(name) for name in names} | models.zoo.preprocessing(args.weights)
    return Saved(str(path), state, content.get("classes"), settings)


def read_checkpoint(path: Path) -> dict:
    try:
        return models.read_checkpoint(path)
    except models.WeightsError as error:
        raise UserError(str(error)) from None


def start(args: argparse.Namespace) -> setup.Machine:
    """Join the other processes, if any, and say what this one computes with."""
    device = processes.join(setup.choose_device(args.device))
    return setup.set_up(device, args.seed, args.deterministic, args.amp_dtype if args.amp else None)


def build(args: argparse.Namespace, classes: int, image_size: int, saved: Saved | None) -> models.AdaptiveDepth:
    """The network for so many classes, with the weights of --init-from or `saved` if there are any."""
    settings = {name: getattr(args, name) for name in SHAPE} | {"switchable_norms": not args.no_switchable_norms}
    try:
        model = models.build(args.model, num_classes=classes, image_size=image_size, **settings)
    except (ValueError, AssertionError) as error:
        raise UserError(f"--model {args.model}: {error}") from None
    if name := args.init_from:
        is_file, enums = Path(name).exists(), torchvision.models.get_model_weights
        try:
            plain = models.read_checkpoint(name) if is_file else enums(args.model)[name]
        except (KeyError, ValueError):
            what = f"neither a file nor weights that torchvision has of {args.model}"
            raise UserError(f"--init-from {name}: {what}") from None
        models.load_plain(model, plain, new_head=True)
    if saved:
        models.load_state(model, saved.state, source=saved.source)
    return model


if __name__ == "__main__":
    processes.run(main)
