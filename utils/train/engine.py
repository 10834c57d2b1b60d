"""One epoch of training: loader → device → passes → optimizer → log, in a straight line.

Nothing waits for the device except at log points and before checkpoints.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sampler import TrainBatches
from utils import processes
from utils.data.device import OnDevice
from utils.data.loading import Batch
from utils.errors import UserError
from utils.files import whole_file
from utils.rng import derive
from utils.setup import Machine
from utils.stop import StopRequest
from utils.train import checkpoint
from utils.train.checkpoint import Progress, State
from utils.train.log import Log, Meters, averages
from utils.train.optim import all_finite
from utils.train.passes import Method
from utils.train.step import TrainingStep


@dataclass
class Run:
    """The objects of a training run, made by the command."""

    args: argparse.Namespace
    machine: Machine
    state: State
    method: Method
    step: TrainingStep
    on_device: OnDevice
    mix: Callable  # images, targets, generator → images, targets
    log: Log
    stop: StopRequest

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)


def train_one_epoch(run: Run, loader: DataLoader, batches: TrainBatches) -> bool:
    """Train the rest of the epoch that `run.state.progress` stands in. False if asked to stop."""
    args, progress = run.args, run.state.progress
    steps = -(-len(batches) // args.grad_accum)
    batches.set_epoch(progress.epoch, start=progress.samples // processes.world_size())
    remaining = batches.remaining()
    meters = Meters(len(run.method.roles), run.machine.device, progress.meters)
    watch = Watch(run, meters)
    run.log.start_epoch(progress.epoch, progress.step, steps)
    run.state.model.train()
    arriving = run.on_device(loader)
    while remaining:
        count = min(args.grad_accum, remaining)
        take_step(run, itertools.islice(arriving, count), count, meters)
        remaining -= count
        progress.samples += count * batches.batch_size * processes.world_size()
        progress.step += 1
        if progress.step % args.print_freq == 0 or progress.step == steps:
            watch.report()
        if run.stop.poll():
            break
        if args.checkpoint_steps and progress.step % args.checkpoint_steps == 0:
            watch.check()
            save(run)
    run.log.end_epoch()
    watch.check()
    save(run)
    return not run.stop.answer


def take_step(run: Run, batches: Iterable[Batch], count: int, meters: Meters) -> None:
    """All passes of `count` batches, one reduction of the gradients, one step of the optimizer."""
    args, state, progress = run.args, run.state, run.state.progress
    seed = derive(args.seed, progress.epoch, progress.step, processes.rank())
    torch.manual_seed(seed)  # dropout and stochastic depth: a resumed run draws what an uninterrupted one draws
    generator = torch.Generator().manual_seed(seed)
    passes = run.method.passes(progress.epoch, progress.step)
    # Reduced gradients live in buckets and are zeroed there; others are dropped, which saves a pass over the memory.
    state.optimizer.zero_grad(set_to_none=processes.world_size() == 1)

    def backward(loss: Tensor) -> None:
        loss = loss / count
        (state.scaler.scale(loss) if state.scaler else loss).backward()

    for number, batch in enumerate(batches, start=1):
        check_readable(batch, args.on_corrupt, progress)
        images, targets = run.mix(batch.images, batch.targets, generator)
        meters.add(run.step(passes, images, targets, backward, reduce=number == count), targets)
    update_weights(state, args.clip_grad_norm)
    if state.ema:
        state.ema.update(state.model, progress.step, warming_up=progress.epoch < args.lr_warmup_epochs)


def check_readable(batch: Batch, on_corrupt: str, progress: Progress) -> None:
    """Stop at an image that cannot be read, or count it."""
    if batch.corrupt and (on_corrupt == "error" or len(batch.targets) == 0):
        raise UserError(
            f"cannot decode {batch.corrupt[0]}: mend or remove the file, or train on without it by --on-corrupt skip"
        )
    progress.corrupt += len(batch.corrupt)


def update_weights(state: State, clip: float | None) -> None:
    """Clip the reduced gradients if asked to, and step; with fp16 a step whose gradients overflowed is left out."""
    optimizer, scaler = state.optimizer, state.scaler
    if clip is not None:
        if scaler:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()


class Watch:
    """Looks at the running sums, which waits for the device: reports them at log points, stops a run gone wrong."""

    def __init__(self, run: Run, meters: Meters) -> None:
        self.run = run
        self.meters = meters
        self.seen = meters.values().sum(0)
        self.images_before = self.seen[0, 3].item()

    def check(self) -> Tensor:
        """The sums over all processes so far.

        A loss that is not finite ends the run; with loss scaling, which leaves such a step out, only if all since the
        last log point are so.
        """
        values = self.meters.values()
        total = values.sum(0)
        images, not_finite = (total - self.seen)[:, 3:].unbind(1)
        bad = not_finite > 0
        if self.run.state.scaler:
            bad &= not_finite == images
        if bad.any() or not total.isfinite().all():
            stop_with_diagnostic(self.run, averages(self.run.method.roles, total - self.seen))
        self.run.state.progress.meters = values.tolist()
        return total

    def report(self) -> None:
        """A log line about what came since the last one."""
        total = self.check()
        lr = self.run.state.optimizer.param_groups[0]["lr"]
        values = {"lr": lr, **averages(self.run.method.roles, total - self.seen)}
        self.run.log.point(self.run.state.progress.step, int(total[0, 3].item() - self.images_before), values)
        self.seen = total


def save(run: Run) -> None:
    """Write the newest checkpoint, unless the weights have gone wrong."""
    if not all_finite(run.state.model.parameters()):
        stop_with_diagnostic(run, {})
    processes.on_main(lambda: checkpoint.save(run.folder, run.state.content()))


def stop_with_diagnostic(run: Run, losses: dict[str, float]) -> None:
    """Leave a file that helps to find out why, and end the run. All processes come here together."""
    state = run.state
    wrong = [name for name, tensor in state.model.state_dict().items() if not tensor.float().isfinite().all()]
    content = {
        "epoch": state.progress.epoch,
        "step": state.progress.step,
        "since_last_log_point": {name: str(value) for name, value in losses.items()},
        "lr": [group["lr"] for group in state.optimizer.param_groups],
        "loss_scale": state.scaler.get_scale() if state.scaler else None,
        "tensors_not_finite": wrong,
        "args": vars(run.args),
    }
    path = run.folder / "diagnostic.json"

    def write() -> None:
        with whole_file(path) as file:
            file.write(json.dumps(content, indent=2, default=str).encode())

    processes.on_main(write)
    raise UserError(
        f"the loss is not finite (epoch {state.progress.epoch}, step {state.progress.step}): {path} tells more, "
        "the last good checkpoint is kept; try a lower --lr, --lr-warmup-epochs, --clip-grad-norm or --amp-dtype bf16"
    )
