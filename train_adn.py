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
import logging
import sys
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

import models
import sampler
import transforms
from tools import inference
from tools.assemble import (
    autocast_of,
    build_model,
    choose_device,
    prepare_of,
    read_checkpoint,
    saved_weights,
    seed_everything,
    skips_of,
)
from utils import processes as distributed
from utils.data.loading import Data, eval_loader, load_data, train_loader
from utils.errors import UserError
from utils.evaluate.accuracy import Result, evaluate
from utils.evaluate.table import choose_from_file
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
            print(choose_from_file(args))
            return 0
        device = distributed.start(choose_device(args.device), args.dist_url, args.world_size)
        args.device = str(device)
        log.setup()
        seed_everything(args)
        if args.test_only or args.predict:
            return inference.run(args, device)
        data = load_data(args)
        model = build_model(args, len(data.classes), saved_weights(args)).to(device)
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


def passes_of(args: argparse.Namespace, model: models.AdaptiveDepth) -> tuple[list[distillation.Pass], list[str]]:
    """What a step runs, and what each pass is called in the log."""
    if args.method == "individual":
        skip = one_skip(args, model)
        return distillation.individual_passes(skip), [models.subnet_name(skip)]
    make = distillation.undistilled_passes if args.no_distillation else distillation.adn_passes
    return make(model.super_net, model.base_net, args.subpath_alpha), ["super", "base"]


def one_skip(args: argparse.Namespace, model: models.AdaptiveDepth) -> Hashable:
    skips = skips_of(args, model)
    if len(skips) != 1:
        raise UserError(f"--method individual trains one network; --skip-cfg names {len(skips)}")
    return skips[0]


def make_run(args: argparse.Namespace, device: torch.device, data: Data, model: models.AdaptiveDepth) -> engine.Run:
    """Everything a training run consists of."""
    autocast, args.precision = autocast_of(args, device)
    prepare = prepare_of(args, device, model)
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
    results = evaluate(model, loader, subnets, run.prepare, run.step.autocast, run.args.on_corrupt)
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
