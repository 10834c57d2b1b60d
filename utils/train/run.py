"""A training run from its objects to its last line: resume, epochs, a test after each, checkpoints.

The command makes data, network and method, and introduces them here; nothing in this file knows what they are.
"""

import argparse
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import sampler
import transforms
from utils import processes
from utils.data.loading import Data, eval_loader, start_workers, train_loader
from utils.errors import UserError
from utils.evaluate.accuracy import Result, evaluate
from utils.setup import Machine
from utils.stop import StopRequest, exit_code
from utils.train import checkpoint, engine, log, optim
from utils.train.passes import Method
from utils.train.step import TrainingStep, share_gradients

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaders:
    """Batches to train and to test on, whose workers run already."""

    batches: sampler.TrainBatches
    train: DataLoader
    test: DataLoader


def make_loaders(args: argparse.Namespace, data: Data) -> Loaders:
    """Call it before the process group and the GPU are there: the workers are forked now."""
    rank, size = processes.rank(), processes.world_size()
    repeats = args.ra_reps if args.ra_sampler else 1
    batches = sampler.TrainBatches(
        len(data.train), args.batch_size, rank=rank, world_size=size, seed=args.seed, repeats=repeats
    )
    test = eval_loader(data, args, sampler.EvalSampler(len(data.val), rank, size))
    loaders = Loaders(batches, train_loader(data, args, batches), test)
    for loader in (loaders.train, loaders.test):
        start_workers(loader)
    return loaders


@dataclass(frozen=True)
class Reader:
    """How weights are read and loaded, which the loop leaves to the command."""

    read: Callable[[Path], dict]  # a UserError says what is wrong with the file
    load: Callable[[nn.Module, dict, str], None]  # into a network; `str` is where from


def make_run(
    args: argparse.Namespace, machine: Machine, classes: list[str], model: nn.Module, method: Method, reader: Reader
) -> engine.Run:
    """Everything a training run consists of, continued where it is to be."""
    on_device = machine.place(model, args.channels_last)
    if args.sync_bn:
        model = with_sync_bn(model, machine.device)
    optimizer = optim.build_optimizer(model, args)
    state = checkpoint.State(
        model=model,
        optimizer=optimizer,
        scheduler=optim.build_scheduler(optimizer, args),
        ema=optim.MovingAverage.of(model, args, processes.world_size()) if args.model_ema else None,
        scaler=torch.amp.GradScaler(machine.device.type) if machine.precision == "fp16" else None,
        progress=checkpoint.Progress(epoch=args.start_epoch),
        args=args,
        classes=classes,
    )
    resume(state, reader)
    if args.torch_compile:
        model.compile()
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    return engine.Run(
        args=args,
        machine=machine,
        state=state,
        method=method,
        step=TrainingStep(share_gradients(model), criterion, method.distance, machine.autocast),
        on_device=on_device,
        mix=transforms.BatchMix(len(classes), args.mixup_alpha, args.cutmix_alpha),
        log=log.Log(Path(args.output_dir), args.tensorboard),
        stop=StopRequest(),
    )


def with_sync_bn(model: nn.Module, device: torch.device) -> nn.Module:
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UserError("--sync-bn: this network has no batch norms; leave the flag out")
    if processes.world_size() == 1:
        logger.info("--sync-bn: one process, there is nothing to synchronise")
        return model
    if device.type != "cuda":
        raise UserError("--sync-bn: torch synchronises batch norms on GPUs only; leave the flag out on the CPU")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def resume(state: checkpoint.State, reader: Reader) -> None:
    """Continue where --resume says, or, in a run that its launcher started again, where it had come to."""
    args, folder = state.args, Path(state.args.output_dir)
    processes.on_main(lambda: checkpoint.remove_half_written(folder))
    restarted = processes.restarted()  # all processes ask, whatever they were told
    wish = args.resume or ("auto" if restarted else "")
    if not wish:
        processes.on_main(lambda: checkpoint.rename_older_run(folder))
        return
    path = Path(wish)
    if wish == "auto":
        path = processes.from_main(processes.on_main(lambda: checkpoint.newest_readable(folder, reader.read)))
        if path is None:
            logger.info("--resume auto: no checkpoint in %s, starting from the beginning", folder)
            return
    if processes.world_size() > 1 and processes.largest(not path.is_file()):
        raise UserError(f"--resume {wish}: not every process can read {path}; put it on a file system that all share")
    state.restore(reader.read(path), partial(_load, reader, str(path)), str(path))
    logger.info("Resumed %s: epoch %d, step %d", path, state.progress.epoch, state.progress.step)


def _load(reader: Reader, source: str, model: nn.Module, state: dict) -> None:
    reader.load(model, state, source)


def train(run: engine.Run, data: Data, loaders: Loaders) -> int:
    """Train to the end, or until a signal asks to stop. Returns the command's exit code."""
    processes.on_main(lambda: log.write_run_file(run.folder, run.args, run.machine.device))
    state, progress = run.state, run.state.progress
    logger.info(_opening_line(run, data, loaders.batches))
    results: dict[str, Result] = {}
    with run.stop.listening():
        while progress.epoch < run.args.epochs:
            if not engine.train_one_epoch(run, loaders.train, loaders.batches):
                logger.info("Stopped by a signal, saved in %s: continue with --resume auto", run.folder)
                return exit_code()
            results = _test(run, loaders.test)
            state.scheduler.step()
            _finish_epoch(run, results)
    logger.info(_closing_line(run, results))
    return 0


def _test(run: engine.Run, loader: DataLoader) -> dict[str, Result]:
    """Accuracy of the networks that the method names, of the moving average's if there is one."""
    model = run.state.ema.module if run.state.ema else run.state.model
    processes.broadcast(model.buffers())
    tested: dict[str, Hashable] = run.method.tested
    found = evaluate(model, loader, list(tested.values()), run.on_device, run.machine.autocast, run.args.on_corrupt)
    results = {name: found[subnet] for name, subnet in tested.items()}
    for name, result in results.items():
        logger.info("Test: %s%s %s", "EMA " if run.state.ema else "", name, result)
    return results


def _finish_epoch(run: engine.Run, results: dict[str, Result]) -> None:
    """Note what the epoch brought, go to the next one, save."""
    progress, epoch = run.state.progress, run.state.progress.epoch
    figures = {
        f"{figure}_{name}": getattr(result, figure)
        for name, result in results.items()
        for figure in ("top1", "top5", "loss")
    }
    run.log.record("epoch", epoch, progress.step, figures)
    first = next(iter(results.values()))
    best = first.top1 > progress.best
    progress.best = max(progress.best, first.top1)
    progress.next_epoch()
    engine.save(run)
    processes.on_main(lambda: checkpoint.keep_epoch(run.folder, epoch, run.args.epochs, best))


def _opening_line(run: engine.Run, data: Data, batches: sampler.TrainBatches) -> str:
    args, model, machine = run.args, run.state.model, run.machine
    parameters = sum(p.numel() for p in model.parameters())
    names = ", ".join(f"{name} {model.name(subnet)}" for name, subnet in run.method.tested.items())
    size = f"{args.batch_size} x {args.grad_accum * processes.world_size()}"
    steps = -(-len(batches) // args.grad_accum)
    return (
        f"Training {args.model} ({parameters / 1e6:.2f} M parameters, {len(model.subnets)} sub-networks; {names}) on "
        f"{data.name}: {len(data.train)} images, {len(data.classes)} classes; {processes.world_size()} process(es) "
        f"on {machine.device}, {machine.precision}, batch {size}, "
        f"{steps} steps per epoch, epochs {run.state.progress.epoch} to {args.epochs - 1}"
    )


def _closing_line(run: engine.Run, results: dict[str, Result]) -> str:
    progress = run.state.progress
    accuracies = ", ".join(f"{name} {result}" for name, result in results.items())
    corrupt = f", {progress.corrupt} corrupt images replaced" if progress.corrupt else ""
    return (
        f"Done: {accuracies or 'nothing left to train'}; best {run.method.roles[0]} Acc@1 {progress.best:.3f}"
        f"{corrupt}; checkpoints, metrics.jsonl and run.json in {run.folder}"
    )
