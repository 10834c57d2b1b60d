"""One epoch of training: loader → device → passes → optimizer → log, in a straight line.

Nothing waits for the device except at log points and before checkpoints.
"""

import argparse
import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sampler import TrainBatches
from utils import processes
from utils.data.device import OnDevice
from utils.data.loading import Batch
from utils.errors import UserError
from utils.files import write_json
from utils.rng import derive
from utils.setup import Machine
from utils.stop import StopRequest
from utils.train import checkpoint, folder
from utils.train.log import Log, Meters
from utils.train.optim import all_finite, warming_up
from utils.train.passes import Method
from utils.train.step import TrainingStep

log = logging.getLogger(__name__)

PATIENCE = 16  # steps in a row that loss scaling may leave out: it starts high, and halves itself each time


@dataclass
class Run:
    """The objects of a training run."""

    args: argparse.Namespace
    machine: Machine
    state: checkpoint.State
    method: Method
    step: TrainingStep
    on_device: OnDevice
    mix: Callable  # images, targets, generator → images, targets
    log: Log
    stop: StopRequest
    evaluate: Callable  # network, loader, sub-networks → the Result of each
    main: str = "Acc@1"  # the first of its figures: what decides which weights are best
    meters: type[Meters] = Meters
    told: set[str] = field(default_factory=set)  # corrupt images that the log has named

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)


def train_one_epoch(run: Run, loader: DataLoader, batches: TrainBatches) -> bool:
    """Train the rest of the epoch that `run.state.progress` stands in. False if asked to stop."""
    args, state, progress, roles = run.args, run.state, run.state.progress, run.method.roles
    batches.set_epoch(progress.epoch, start=progress.samples // processes.world_size())
    remaining = batches.remaining()
    steps = progress.step + -(-remaining // args.grad_accum)
    meters = run.meters(len(roles), run.machine.device, progress.meters)
    seen = meters.values().sum(0)  # the sums at the last log point
    healthy = seen.clone()  # of each pass, when it last had a finite loss
    patience = (min(PATIENCE, steps) - 1) * args.grad_accum * batches.batch_size * processes.world_size()  # images
    run.log.start_epoch(progress.epoch, progress.step, steps)
    state.model.train()
    arriving = run.on_device(loader)
    while remaining:
        count = min(args.grad_accum, remaining)
        take_step(run, itertools.islice(arriving, count), count, meters)
        remaining -= count
        progress.samples += count * batches.batch_size * processes.world_size()
        progress.step += 1
        if progress.step % args.print_freq == 0 or progress.step == steps:
            total = check_losses(run, meters, healthy, patience)
            values = {"lr": state.optimizer.param_groups[0]["lr"], **meters.averages(roles, total - seen)}
            run.log.point(progress.step, int(total[0, 3] - seen[0, 3]), values)
            seen = total
        if run.stop.poll():
            break
        if args.checkpoint_steps and progress.step % args.checkpoint_steps == 0:
            check_losses(run, meters, healthy, patience)
            save(run)
    run.log.bar.close()
    check_losses(run, meters, healthy, patience)
    save(run)
    return not run.stop.answer


def take_step(run: Run, batches: Iterable[Batch], count: int, meters: Meters) -> None:
    """All passes of `count` batches, one reduction of the gradients, one step of the optimizer."""
    args, state, progress = run.args, run.state, run.state.progress
    optimizer, scaler = state.optimizer, state.scaler
    seed = derive(args.seed, progress.epoch, progress.step, processes.rank())
    torch.manual_seed(seed)  # dropout and stochastic depth: a resumed run draws what an uninterrupted one draws
    generator = torch.Generator().manual_seed(seed)
    passes = run.method.passes(progress.epoch, progress.step)
    # Several processes reduce gradients in buckets, where they are zeroed. One process drops them, which saves a pass
    # over the memory. So do all where a parameter is in no pass: decay and momentum move what has a gradient, even 0.
    optimizer.zero_grad(set_to_none=processes.world_size() == 1 or not run.step.reaches_all(passes))

    def backward(loss: Tensor) -> None:
        scaler.scale(loss / count).backward()

    for number, batch in enumerate(batches, start=1):
        if batch.corrupt and (args.on_corrupt == "error" or len(batch.targets) == 0):
            way_out = "mend or remove the file, or train on without it by --on-corrupt skip"
            raise UserError(f"cannot decode {batch.corrupt[0]}: {way_out}")
        progress.corrupt.extend(name for name in batch.corrupt if name not in progress.corrupt)
        images, targets = run.mix(batch.images, batch.targets, generator)
        meters.add(run.step(passes, images, targets, backward, reduce=number == count), targets)
    if args.clip_grad_norm is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), args.clip_grad_norm)
    with warming_up(optimizer, args.lr_warmup_steps, progress.epoch, progress.step):
        scaler.step(optimizer)  # with fp16 a step whose gradients overflowed is left out
    scaler.update()
    if state.ema:
        state.ema.update(state.model, progress.step, warming_up=progress.epoch < args.lr_warmup_epochs)


def check_losses(run: Run, meters: Meters, healthy: Tensor, patience: int) -> Tensor:
    """The sums over all processes so far, which waits for the device. `healthy`: theirs when losses were last finite.

    A loss that is not finite ends the run. Loss scaling leaves such a step out: there only many in a row end it.
    """
    values = meters.values()
    total = values.sum(0)
    images, not_finite = (total - healthy)[:, 3:].unbind(1)
    wrong = not_finite > 0
    if run.state.scaler.is_enabled():
        wrong &= (not_finite == images) & (images > patience)
    if wrong.any() or not total.isfinite().all():
        stop_with_diagnostic(run, run.meters.averages(run.method.roles, total - healthy))
    recovered = not_finite < images
    healthy[recovered] = total[recovered]
    run.state.progress.meters = values.tolist()
    return total


def save(run: Run) -> None:
    """Write the newest checkpoint, unless the weights have gone wrong."""
    if not all_finite(run.state.model.parameters()):
        stop_with_diagnostic(run, {})
    progress = run.state.progress
    progress.corrupt = sorted(set().union(*processes.gather_objects(progress.corrupt)))
    if new := [name for name in progress.corrupt if name not in run.told]:
        more = f" and {len(new) - 10} more" if len(new) > 10 else ""
        log.warning("%d corrupt images were replaced: %s%s", len(new), ", ".join(new[:10]), more)
        run.told.update(new)
    processes.on_main(lambda: folder.save(run.folder, run.state.content()))


def stop_with_diagnostic(run: Run, losses: dict[str, float]) -> None:
    """Leave a file that helps to find out why, and end the run. All processes come here together."""
    state, progress, path = run.state, run.state.progress, run.folder / folder.DIAGNOSTIC
    content = {
        "epoch": progress.epoch,
        "step": progress.step,
        "since_losses_were_finite": {name: str(value) for name, value in losses.items()},
        "lr": [group["lr"] for group in state.optimizer.param_groups],
        "loss_scale": state.scaler.get_scale() if state.scaler.is_enabled() else None,
        "tensors_not_finite": [name for name, t in state.model.state_dict().items() if not t.float().isfinite().all()],
        "args": vars(run.args),
    }
    processes.on_main(lambda: write_json(path, content))
    raise UserError(
        f"the loss is not finite (epoch {progress.epoch}, step {progress.step}): {path} tells more, "
        "the last good checkpoint is kept; try a lower --lr, --lr-warmup-epochs, --clip-grad-norm or --amp-dtype bf16"
    )
