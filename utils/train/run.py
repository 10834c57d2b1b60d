"""A training run from its objects to its last line: resume, epochs, a test after each, checkpoints.

The command makes data, network and method, and introduces them here; nothing in this file knows what they are.
"""

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

import transforms
from sampler import TrainBatches
from utils import processes
from utils.data.loading import Data, eval_loader, start_workers, train_loader
from utils.errors import UserError
from utils.evaluate.accuracy import Result, evaluate
from utils.evaluate.calibration import calibrate, calibration_loader
from utils.setup import Machine
from utils.stop import StopRequest, exit_code
from utils.train import checkpoint, engine, folder, optim
from utils.train.log import Log
from utils.train.passes import Method
from utils.train.step import TrainingStep, share_gradients

log = logging.getLogger(__name__)


class Loaders(NamedTuple):
    batches: TrainBatches  # of `train`
    train: DataLoader
    test: DataLoader


def make_loaders(args: argparse.Namespace, data: Data, batches: TrainBatches) -> Loaders:
    """Call it before the process group and the GPU are there: the workers are forked now."""
    test = eval_loader(data, args, processes.rank(), processes.world_size())
    loaders = Loaders(batches, train_loader(data, args, batches), test)
    start_workers(loaders.train)
    start_workers(loaders.test)
    return loaders


def make_run(
    args: argparse.Namespace, machine: Machine, classes: list[str], model: nn.Module, method: Method
) -> engine.Run:
    """Everything a training run consists of, at its beginning."""
    on_device = machine.place(model, args.channels_last)
    if args.sync_bn:
        model = with_sync_bn(model, machine.device)
    optimizer = optim.build_optimizer(model, args)
    scheduler = optim.build_scheduler(optimizer, args, args.start_epoch)
    ema = optim.MovingAverage.of(model, args, processes.world_size()) if args.model_ema else None
    method.average = ema and ema.module
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
    progress = checkpoint.Progress(epoch=args.start_epoch)
    trained = [model.name(subnet) for subnet in method.tested.values()]
    state = checkpoint.State(model, optimizer, scheduler, ema, scaler, progress, args, classes, trained)
    if args.torch_compile:
        model.compile()
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    step = TrainingStep(share_gradients(model), criterion, method.distance, machine.autocast)
    mix = transforms.BatchMix(len(classes), args.mixup_alpha, args.cutmix_alpha)
    record = Log(Path(args.output_dir), args.tensorboard)
    test = partial(evaluate, on_device=on_device, autocast=machine.autocast, on_corrupt=args.on_corrupt)
    return engine.Run(args, machine, state, method, step, on_device, mix, record, StopRequest(), test)


def with_sync_bn(model: nn.Module, device: torch.device) -> nn.Module:
    """Batch norms over all processes, for --sync-bn."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise UserError("--sync-bn: this network has no batch norms; leave the flag out")
    if any(True for norm in norms for _ in norm.children()):  # torch would replace the norm with what it holds
        raise UserError("--sync-bn: this network's batch norms hold an activation, which torch's lack; leave it out")
    if processes.world_size() == 1:
        log.info("--sync-bn: one process, there is nothing to synchronise")
        return model
    if device.type != "cuda":
        raise UserError("--sync-bn: torch synchronises batch norms on GPUs only; leave the flag out on the CPU")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ran = [module for module in model.view().modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not all(isinstance(norm, nn.SyncBatchNorm) for norm in ran):
        raise UserError("--sync-bn: widths of this network share norms' weights, which torch's cannot; leave it out")
    return model


def resume(state: checkpoint.State, read: Callable[[Path], dict], load: checkpoint.Load) -> None:
    """Continue where --resume says, or, in a run that its launcher started again, where it had come to itself.

    `read` gives a file's content or a UserError that says what is wrong with it.
    """
    wish, place = state.args.resume, Path(state.args.output_dir)
    processes.on_main(lambda: folder.remove_half_written(place))
    path = None
    restarted = processes.restarted()  # all processes ask, whatever they were told
    if restarted or wish == "auto":
        own = None if wish == "auto" else processes.launch()
        path = processes.on_main(lambda: folder.newest_readable(place, read, own))
    if path is None and wish == "auto":
        log.info("--resume auto: no checkpoint in %s, starting from the beginning", place)
    elif path is None and wish:
        path = Path(wish)
    if path is not None:
        if processes.world_size() > 1 and processes.largest(not path.is_file()):
            raise UserError(
                f"--resume {wish}: not every process can read {path}; put it on a file system that all share"
            )
        state.restore(read(path), load, str(path))
        log.info("Resumed %s: epoch %d, step %d", path, state.progress.epoch, state.progress.step)
    if path is None or path.parent.resolve() != place.resolve():
        processes.on_main(lambda: folder.set_aside(place))
    state.run = processes.from_main(state.run)


def train(run: engine.Run, data: Data, loaders: Loaders) -> int:
    """Train to the end, or until a signal asks to stop. Returns the command's exit code."""
    args, state, progress, size = run.args, run.state, run.state.progress, processes.world_size()
    processes.on_main(lambda: folder.write_about(run.folder, state.run, args, run.machine.device))
    steps = -(-len(loaders.batches) // args.grad_accum)
    run.log.start(state.run, progress.epoch, progress.step, steps)
    parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
    names = ", ".join(map(" ".join, zip(run.method.tested, state.trained, strict=True)))
    log.info(
        f"Training {args.model} ({parameters:.2f} M parameters, {len(state.model.subnets)} sub-networks; {names}) on "
        f"{data.name}: {len(data.train)} images, {len(data.classes)} classes; {size} process(es) on "
        f"{run.machine.device}, {run.machine.precision}, batch {args.batch_size} x {args.grad_accum * size}, "
        f"{steps} steps per epoch, epochs {progress.epoch} to {args.epochs - 1}"
    )
    results: dict[str, Result] = {}
    if progress.epoch < args.epochs:  # perhaps a run that had been at its end
        state.model.forget_statistics()
        tested_network(state).forget_statistics()
    with run.stop.listening():
        while progress.epoch < args.epochs:
            if not engine.train_one_epoch(run, loaders.train, loaders.batches):
                log.info("Stopped by a signal, saved in %s: continue with --resume auto", run.folder)
                return exit_code()
            results = finish_epoch(run, loaders.test)
        if args.calibrate and not tested_network(state).statistics():
            results = end_with_calibration(run, data, loaders.test) or results
    outcome = ", ".join(f"{role} {results[role]}" for role in run.method.tested if results) or "nothing left to train"
    corrupt = f", {len(progress.corrupt)} corrupt images replaced" if progress.corrupt else ""
    log.info(
        f"Done: {outcome}; best epoch's {next(iter(run.method.tested))} {run.main} {progress.best:.3f}{corrupt}; "
        f"checkpoints, metrics.jsonl and run.json in {run.folder}"
    )
    return 0


def tested_network(state: checkpoint.State) -> nn.Module:
    """The moving average, if there is one."""
    return state.ema.module if state.ema else state.model


def test_networks(run: engine.Run, loader: DataLoader, everything: bool, title: str) -> tuple[dict[str, Result], dict]:
    """Test the method's sub-networks, or all, and say what came out: results by name, and figures for the log."""
    model, tested = tested_network(run.state), dict(run.method.tested)
    if everything:
        more = (subnet for subnet in model.subnets if subnet not in tested.values() and model.ready(subnet))
        tested |= {model.name(subnet): subnet for subnet in more}
    found = run.evaluate(model, loader, list(tested.values()))
    results, figures = {name: found[subnet] for name, subnet in tested.items()}, {}
    for name, result in results.items():
        log.info("%s: %s%s %s", title, "EMA " if run.state.ema else "", name, result)
        figures |= {f"test_{kind}_{name}": value for kind, value in result.figures.items()}
    return results, figures


def finish_epoch(run: engine.Run, loader: DataLoader) -> dict[str, Result]:
    """Test, note the outcome, save. All are tested after every --test-all-every epochs and the last one."""
    args, state, progress, done = run.args, run.state, run.state.progress, run.state.progress.epoch + 1
    for network in dict.fromkeys((state.model, tested_network(state))):  # a resumed run has the main process's too
        processes.broadcast(network.buffers())
    everything = bool(args.test_all_every) and (done % args.test_all_every == 0 or done == args.epochs)
    results, figures = test_networks(run, loader, everything, "Test")
    run.log.end_epoch(figures | ({"corrupt": progress.corrupt} if progress.corrupt else {}), args.epochs)
    state.scheduler.step()
    main = next(iter(next(iter(results.values())).figures.values()))
    best = main > progress.best
    progress.best = max(progress.best, main)
    progress.epoch, progress.step, progress.samples, progress.meters = done, 0, 0, []
    engine.save(run)
    processes.on_main(lambda: folder.keep_epoch(run.folder, state.content(), args.keep, best))
    return results


def end_with_calibration(run: engine.Run, data: Data, loader: DataLoader) -> dict[str, Result]:
    """At the end of a run: statistics of each sub-network's own, tested and saved. Nothing without batch norms."""
    args, state, one = run.args, run.state, list(run.method.tested.values())
    images = calibration_loader(data, args, workers=0)  # it is too late to fork some
    if not calibrate(tested_network(state), images, run.on_device, args.on_corrupt, one if len(one) == 1 else None):
        return {}
    log.info("Each sub-network has batch-norm statistics of its own now")
    results, figures = test_networks(run, loader, bool(args.test_all_every), "Test, calibrated")
    run.log.record("calibrated", state.progress.epoch - 1, 0, figures)
    engine.save(run)
    return results
