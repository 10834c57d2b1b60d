"""Train and test adaptive-depth networks.

    python train_adn.py --data-path digits --stem small                           one process
    torchrun --nproc_per_node=4 train_adn.py --model resnet50 --data-path DIR     4 GPUs of one machine
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 train_adn.py …    two machines

Exit codes: 0 done, 2 a mistake to mend (one line says which), 75 stopped by a signal and saved (--resume auto goes on).
"""

from utils.flags.arguments import parser

if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before torch, which takes seconds, is imported

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import models
import models.zoo
import presets
import sampler
import transforms
from utils import memory
from utils import processes as distributed
from utils.data.loading import Batch, Data, eval_loader, load_data, train_loader
from utils.errors import UserError
from utils.evaluate import predict, report, table
from utils.evaluate.accuracy import Result, evaluate
from utils.flags.data import complete
from utils.flags.evaluation import chosen
from utils.reduction import GradientReducer
from utils.stop import EXIT_CODE, StopRequest
from utils.train import checkpoint, engine, log, optim
from utils.train import step as distillation

logger = logging.getLogger("train_adn")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    args = parser().parse_args(argv)
    try:
        if args.from_table:
            budget = table.Budget(args.budget_gmacs, args.budget_latency, args.budget_params)
            print(table.choose_from(args.from_table, budget))
            return 0
        device = distributed.start(choose_device(args.device), args.dist_url, args.world_size)
        args.device = str(device)
        if device.type == "cpu":
            memory.keep_freed()
        log.setup()
        seed_everything(args)
        if args.test_only or args.predict:
            return test_or_predict(args, device)
        data = load_data(args)
        _, state, source = saved_weights(args) or (None, None, "")
        model = build_model(args, len(data.classes), args.train_crop_size, state, source).to(device)
        return train(args, device, data, model)
    except (UserError, models.WeightsError) as error:
        return explained(str(error))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return explained(
            f"--batch-size {args.batch_size}: a batch norm has but one value per channel here, which has no spread; "
            "give larger batches or, by --train-crop-size, larger images"
        )
    except RuntimeError:
        if not distributed.another_failed():
            raise
        return 2
    finally:
        distributed.stop()


def explained(mistake: str) -> int:
    """The exit code, after the line that one of the processes prints."""
    if distributed.first_to_say(mistake):
        print(f"train_adn.py: error: {mistake}", file=sys.stderr)
    return 2


def test_or_predict(args: argparse.Namespace, device: torch.device) -> int:
    """--test-only and --predict: a network whose weights are there already."""
    saved = saved_weights(args)
    content, state, source = saved or ({}, None, "")
    made_with = vars(content["args"]) if content.get("args") else {}
    if made_with.get("model", args.model) != args.model:
        raise UserError(f"{source}: is of --model {made_with['model']}, not {args.model}")
    known = {name: made_with.get(name) for name in (*OF_THE_IMAGES, *OF_THE_NETWORK)}
    fill_defaults(args, known | models.zoo.preprocessing(args.weights))
    if args.predict and not saved:
        raise UserError("--predict needs trained weights: give --weights, not --init-from")
    data = None if args.predict else load_data(args)
    if data is None:
        classes = content.get("classes") or class_names(models.num_classes(state))
    else:
        classes = data.classes
        check_classes(content.get("classes"), data, source)
    model = build_model(args, len(classes), args.val_crop_size, state, source).to(device)
    prepare = prepare_of(args.channels_last, device, model)
    autocast, precision = autocast_of(args, device)
    if args.torch_compile:
        model.compile()
    if data is None:
        transform = presets.eval_transform(args.val_resize_size, args.val_crop_size, args.interpolation)
        images = predict.Images(Path(args.predict), transform, args.batch_size, args.on_corrupt)
        subnets = chosen(model, args.skip_cfg)
        predict.predict(model, images, classes, subnets, on_device(prepare), autocast)
    else:
        facts = {"precision": precision, "memory_format": str(prepare.to_float.memory_format).removeprefix("torch.")}
        test(args, model, data, on_device(prepare), autocast, facts)
    return 0


def test(args: argparse.Namespace, model: nn.Module, data: Data, on_device, autocast, facts: dict[str, Any]) -> None:
    """--test-only: one sub-network's accuracy, or the table of several."""
    budget = table.Budget(args.budget_gmacs, args.budget_latency, args.budget_params)
    facts = {
        "model": args.model,
        "weights": args.weights or args.resume,
        "data": data.name,
        "data_path": args.data_path,
        "device": args.device,
        **facts,
        "compiled": args.torch_compile,
        "averaged_weights": args.model_ema,
    }
    wanted = report.Report(
        facts=facts,
        folder=Path(args.output_dir),
        image_size=args.val_crop_size,
        latency_batch=args.latency_batch,
        budget=budget,
        draw=not args.no_picture,
        published=models.zoo.published(args.model) if len(data.classes) == 1000 else {},
    )
    share = sampler.EvalSampler(len(data.val), distributed.rank(), distributed.world_size())
    subnets = chosen(model, args.skip_cfg or (["all"] if budget else None))
    report.test(model, eval_loader(data, args, share), subnets, on_device, autocast, args.on_corrupt, wanted)


def check_classes(names: list[str] | None, data: Data, source: str) -> None:
    """Weights that know the names of their classes are tested on no others."""
    if names is not None and list(names) != list(data.classes):
        said = [
            f"{len(some)}: {', '.join(map(str, some[:3]))}{', …' if len(some) > 3 else ''}"
            for some in (names, data.classes)
        ]
        raise UserError(
            f"{source}: was trained on other classes ({said[0]}) than {data.name} has ({said[1]}): "
            "give the --data-path of its training"
        )


def class_names(count: int) -> list[str]:
    """ImageNet's names for its number of classes, else numbers."""
    names = models.zoo.IMAGENET_CLASSES
    return names if count == len(names) else [f"class {number}" for number in range(count)]


# A bridge from here to `passes_of`: utils/setup.py, fill_defaults and OnDevice take its place.


OF_THE_IMAGES = ("val_resize_size", "val_crop_size", "interpolation")
OF_THE_NETWORK = ("stem", "patch_size", "window_size")


def fill_defaults(args: argparse.Namespace, known: dict[str, Any]) -> None:
    for name, value in known.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    complete(args)


def on_device(prepare: Callable) -> Callable:
    def batches(loader) -> Iterator[Batch]:
        for batch in loader:
            yield Batch(*prepare(batch), batch.corrupt) if len(batch.images) else batch

    return batches


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; use cuda, cpu or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: no CUDA GPU can be used here; use --device cpu, or look into driver and torch build"
        )
    return device


def seed_everything(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(args.deterministic)


def build_model(
    args: argparse.Namespace, classes: int, size: int, state: dict | None = None, source: str = ""
) -> models.AdaptiveDepth:
    """The network for so many classes, with the weights of --init-from or those of `state`."""
    try:
        model = models.build(
            args.model,
            num_classes=classes,
            stem=args.stem,
            patch_size=args.patch_size,
            window_size=args.window_size,
            image_size=size,
            switchable_norms=not args.no_switchable_norms,
        )
    except (ValueError, AssertionError) as error:
        raise UserError(f"--model {args.model}: {error}") from None
    if args.init_from:
        models.load_plain(model, plain_weights(args.init_from, args.model), new_head=True)
    if state:
        models.load_state(model, state, source=source)
    return model


def saved_weights(args: argparse.Namespace) -> tuple[dict, dict, str] | None:
    """The content, the network's weights and the path of the file that --weights or, to test, --resume names."""
    testing = args.test_only or args.predict
    if testing and args.resume == "auto":
        path = checkpoint.newest_good(Path(args.output_dir), read_checkpoint)
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
    return content, models.model_state(content, ema=args.model_ema, source=str(path)), str(path)


def plain_weights(wish: str, model: str) -> dict | object:
    """What --init-from names: a file, or one of torchvision's enums for this model."""
    if Path(wish).exists():
        return models.read_checkpoint(wish)
    try:
        return torchvision.models.get_model_weights(model)[wish]
    except (KeyError, ValueError):
        raise UserError(f"--init-from {wish}: neither a file nor weights that torchvision has of {model}") from None


def autocast_of(args: argparse.Namespace, device: torch.device) -> tuple[Callable, str]:
    """What to enter around a forward pass, and the name of the precision inside."""
    if not args.amp:
        return contextlib.nullcontext, "fp32"
    bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    choice = args.amp_dtype if args.amp_dtype != "auto" else ("bf16" if bf16 else "fp16")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[choice]
    return partial(torch.autocast, device.type, dtype=dtype), choice


def prepare_of(wanted: bool | None, device: torch.device, model: nn.Module) -> engine.Prepare:
    """Channels-last pays for networks of convolutions; a transformer has but one."""
    if wanted is None:
        wanted = sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
    memory_format = torch.channels_last if wanted else torch.contiguous_format
    model.to(memory_format=memory_format)
    return engine.Prepare(device, presets.ToFloat(memory_format=memory_format))


def read_checkpoint(path: Path) -> dict:
    try:
        return models.read_checkpoint(path)
    except models.WeightsError as error:
        raise UserError(str(error)) from None


def passes_of(args: argparse.Namespace, model: models.AdaptiveDepth) -> tuple[list[distillation.Pass], list[str]]:
    """What a step runs, and what each pass is called in the log."""
    if args.method == "individual":
        skip = one_skip(args, model)
        return distillation.individual_passes(skip), [models.subnet_name(skip)]
    make = distillation.undistilled_passes if args.no_distillation else distillation.adn_passes
    return make(model.super_net, model.base_net, args.subpath_alpha), ["super", "base"]


def one_skip(args: argparse.Namespace, model: models.AdaptiveDepth) -> Hashable:
    skips = chosen(model, args.skip_cfg)
    if len(skips) != 1:
        raise UserError(f"--method individual trains one network; --skip-cfg names {len(skips)}")
    return skips[0]


def make_run(args: argparse.Namespace, device: torch.device, data: Data, model: models.AdaptiveDepth) -> engine.Run:
    """Everything a training run consists of."""
    autocast, args.precision = autocast_of(args, device)
    prepare = prepare_of(args.channels_last, device, model)
    if args.sync_bn:
        model = with_sync_bn(model, device)
    reducer = GradientReducer(model)
    state = checkpoint.State(
        model=model,
        optimizer=(optimizer := optim.build_optimizer(model, args)),
        scheduler=optim.build_scheduler(optimizer, args),
        ema=optim.MovingAverage.of(model, args, distributed.world_size()) if args.model_ema else None,
        scaler=torch.amp.GradScaler(device.type) if args.precision == "fp16" else None,
        progress=checkpoint.Progress(epoch=args.start_epoch),
        args=args,
        classes=data.classes,
    )
    resume(state)
    if args.torch_compile:
        model.compile()
    passes, names = passes_of(args, model)
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    losses = distillation.SelfDistillation(args.subpath_temp, args.subpath_topk, args.fpn)
    return engine.Run(
        args=args,
        state=state,
        step=distillation.TrainingStep(model, passes, criterion, losses, autocast),
        names=names,
        reducer=reducer,
        prepare=prepare,
        mix=transforms.BatchMix(len(data.classes), args.mixup_alpha, args.cutmix_alpha),
        log=log.Log(Path(args.output_dir), args.tensorboard),
        stop=StopRequest(),
    )


def with_sync_bn(model: models.AdaptiveDepth, device: torch.device) -> models.AdaptiveDepth:
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UserError("--sync-bn: this network has no batch norms; leave the flag out")
    if distributed.world_size() == 1:
        logger.info("--sync-bn: one process, there is nothing to synchronise")
        return model
    if device.type != "cuda":
        raise UserError("--sync-bn: torch synchronises batch norms on GPUs only; leave the flag out on the CPU")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def resume(state: checkpoint.State) -> None:
    """Continue where --resume says, or, in a run that its launcher started again, where it had come to."""
    args, folder = state.args, Path(state.args.output_dir)
    distributed.on_main(lambda: checkpoint.remove_leftovers(folder))
    wish = args.resume or ("auto" if distributed.restarted() else "")
    path = Path(wish)
    if wish == "auto":
        path = distributed.from_main(checkpoint.newest_good(folder, read_checkpoint) if distributed.is_main() else None)
        if path is None:
            logger.info("--resume auto: no checkpoint in %s, starting from the beginning", folder)
    if wish and path is not None:
        state.restore(read_checkpoint(path), partial(models.load_state, source=str(path)), str(path))
        progress = state.progress
        logger.info("Resumed %s: epoch %d, step %d", path, progress.epoch, progress.step)
    elif not wish:
        distributed.on_main(lambda: checkpoint.set_aside(folder))


def train(args: argparse.Namespace, device: torch.device, data: Data, model: models.AdaptiveDepth) -> int:
    distributed.on_main(lambda: log.write_run_file(Path(args.output_dir), args))
    run = make_run(args, device, data, model)
    rank, processes = distributed.rank(), distributed.world_size()
    order = sampler.TrainSampler(
        len(data.train), rank=rank, world_size=processes, seed=args.seed, repeats=args.ra_reps if args.ra_sampler else 1
    )
    loader = train_loader(data, args, order)
    test_loader = eval_loader(data, args, sampler.EvalSampler(len(data.val), rank, processes))
    state, progress = run.state, run.state.progress
    logger.info(opening_line(run, data, len(loader)))
    results: dict[Hashable, Result] = {}
    with run.stop.listening():
        while progress.epoch < args.epochs:
            if not engine.train_one_epoch(run, loader, order):
                logger.info("Stopped by a signal, saved in %s: continue with --resume auto", run.folder)
                return EXIT_CODE
            results = test_epoch(run, test_loader)
            state.scheduler.step()
            finish_epoch(run, results)
    logger.info(closing_line(run, results))
    return 0


def test_epoch(run: engine.Run, loader) -> dict[Hashable, Result]:
    """Accuracy of the networks in training, of the moving average's if there is one."""
    state = run.state
    model = state.ema.module if state.ema else state.model
    distributed.broadcast_buffers(model)
    subnets = [this.subnet for this in run.step.passes]
    results = evaluate(model, loader, subnets, on_device(run.prepare), run.step.autocast, run.args.on_corrupt)
    for name, result in zip(run.names, results.values(), strict=True):
        logger.info("Test: %s%s %s", "EMA " if state.ema else "", name, result)
    return results


def finish_epoch(run: engine.Run, results: dict[Hashable, Result]) -> None:
    """Note what the epoch brought, go to the next one, save."""
    progress, epoch = run.state.progress, run.state.progress.epoch
    figures = {
        f"{figure}_{name}": getattr(result, figure)
        for name, result in zip(run.names, results.values(), strict=True)
        for figure in ("top1", "top5", "loss")
    }
    run.log.record("epoch", epoch, progress.step, figures)
    super_net = next(iter(results.values()))
    best = super_net.top1 > progress.best
    progress.best = max(progress.best, super_net.top1)
    progress.next_epoch()
    engine.save(run)
    distributed.on_main(lambda: checkpoint.keep(run.folder, epoch, run.args.epochs, best))


def opening_line(run: engine.Run, data: Data, batches: int) -> str:
    args, model = run.args, run.state.model
    parameters = sum(p.numel() for p in model.parameters())
    names = ", ".join(
        f"{name} {models.subnet_name(p.subnet)}" for name, p in zip(run.names, run.step.passes, strict=True)
    )
    return (
        f"Training {args.model} ({parameters / 1e6:.2f} M parameters, {len(model.subnets)} sub-networks; {names}) on "
        f"{data.name}: {len(data.train)} images, {len(data.classes)} classes; {distributed.world_size()} process(es) "
        f"on {args.device}, {args.precision}, batch {args.batch_size} x {args.grad_accum * distributed.world_size()}, "
        f"{-(-batches // args.grad_accum)} steps per epoch, epochs {run.state.progress.epoch} to {args.epochs - 1}"
    )


def closing_line(run: engine.Run, results: dict[Hashable, Result]) -> str:
    accuracies = ", ".join(f"{name} {result}" for name, result in zip(run.names, results.values(), strict=False))
    corrupt = f", {run.state.progress.corrupt} corrupt images replaced" if run.state.progress.corrupt else ""
    return (
        f"Done: {accuracies or 'nothing left to train'}; best {run.names[0]} Acc@1 {run.state.progress.best:.3f}"
        f"{corrupt}; checkpoints, metrics.jsonl and run.json in {run.folder}"
    )


if __name__ == "__main__":
    sys.exit(main())
