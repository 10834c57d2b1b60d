"""One epoch of training: loader → device → passes → optimizer → log, in a straight line.

Nothing waits for the device except at log points and before checkpoints.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from utils import processes as distributed
from utils.data.loading import Batch
from utils.errors import UserError
from utils.files import whole_file
from utils.reduction import GradientReducer
from utils.rng import derive
from utils.stop import StopRequest
from utils.train import checkpoint
from utils.train.checkpoint import Progress, State
from utils.train.log import Log, Meters, averages
from utils.train.optim import all_finite
from utils.train.step import TrainingStep


@dataclass
class Run:
    """The objects of a training run, made by the command."""

    args: argparse.Namespace
    state: State
    step: TrainingStep
    names: list[str]  # of the passes, for the log
    reducer: GradientReducer
    prepare: Callable  # Batch -> images, targets on the device
    mix: Callable  # images, targets, generator -> images, targets
    log: Log
    stop: StopRequest

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)


def train_one_epoch(run: Run, loader: DataLoader, sampler: Sampler) -> bool:
    """Train the rest of the epoch that `run.state.progress` stands in. False if asked to stop."""
    args, progress = run.args, run.state.progress
    steps = -(-len(loader) // args.grad_accum)
    sampler.set_epoch(progress.epoch, start=progress.samples // distributed.world_size())
    meters = Meters(len(run.names), run.reducer.device, progress.meters)
    watch = Watch(run, meters)
    run.log.start_epoch(progress.epoch, progress.step, steps)
    run.state.model.train()
    for batches in grouped(loader, args.grad_accum):
        check_readable(batches, args.on_corrupt, progress)
        take_step(run, batches, meters)
        progress.samples += sum(len(batch.targets) for batch in batches) * distributed.world_size()
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


def grouped(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """The batches of each optimizer step; the last step of an epoch may have fewer."""
    batches = iter(loader)
    while group := list(itertools.islice(batches, size)):
        yield group


def check_readable(batches: Sequence[Batch], on_corrupt: str, progress: Progress) -> None:
    """Stop at an image that cannot be read, or count it."""
    corrupt = [name for batch in batches for name in batch.corrupt]
    if corrupt and (on_corrupt == "error" or any(len(batch.targets) == 0 for batch in batches)):
        raise UserError(
            f"cannot decode {corrupt[0]}: mend or remove the file, or train on without it by --on-corrupt skip"
        )
    progress.corrupt += len(corrupt)


def take_step(run: Run, batches: list, meters: Meters) -> None:
    """All passes of all batches, one reduction of the gradients, one step of the optimizer."""
    args, state = run.args, run.state
    seed = derive(args.seed, state.progress.epoch, state.progress.step, distributed.rank())
    torch.manual_seed(seed)  # dropout and stochastic depth: a resumed run draws what an uninterrupted one draws
    generator = torch.Generator().manual_seed(seed)
    # Reduced gradients live in buckets and are zeroed there; others are dropped, which saves a pass over the memory.
    state.optimizer.zero_grad(set_to_none=not run.reducer.active)
    for number, batch in enumerate(batches):
        images, targets = run.mix(*run.prepare(batch), generator)
        run.reducer.prepare(last=number == len(batches) - 1)
        results = run.step(images, targets, lambda loss: _scaled(state.scaler, loss / len(batches)).backward())
        meters.add(results, targets)
    run.reducer.finish()
    update_weights(state, args.clip_grad_norm)
    if state.ema:
        state.ema.update(state.model, state.progress.step, warming_up=state.progress.epoch < args.lr_warmup_epochs)


def _scaled(scaler: torch.amp.GradScaler | None, loss: Tensor) -> Tensor:
    return scaler.scale(loss) if scaler else loss


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
        """The sums over all processes so far; they are finite."""
        values = self.meters.values()
        total = values.sum(0)
        if not total.isfinite().all():
            stop_with_diagnostic(self.run, averages(self.run.names, total - self.seen))
        self.run.state.progress.meters = values.tolist()
        return total

    def report(self) -> None:
        """A log line about what came since the last one."""
        total = self.check()
        lr = self.run.state.optimizer.param_groups[0]["lr"]
        values = {"lr": lr, **averages(self.run.names, total - self.seen)}
        self.run.log.point(self.run.state.progress.step, int(total[0, 3].item() - self.images_before), values)
        self.seen = total


def save(run: Run) -> None:
    """Write the newest checkpoint, unless the weights have gone wrong."""
    if not all_finite(run.state.model.parameters()):
        stop_with_diagnostic(run, {})
    distributed.on_main(lambda: checkpoint.save(run.folder, run.state.content()))


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
    distributed.on_main(lambda: _write_json(path, content))
    raise UserError(
        f"the loss is not finite (epoch {state.progress.epoch}, step {state.progress.step}): {path} tells more, "
        "the last good checkpoint is kept; try a lower --lr, --lr-warmup-epochs, --clip-grad-norm or --amp-dtype bf16"
    )


def _write_json(path: Path, content: dict) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=2, default=str).encode())


class Prepare:
    """A batch of bytes → images and targets on the device; the copies run beside the device's work."""

    def __init__(self, device: torch.device, to_float: nn.Module) -> None:
        self.device = device
        self.to_float = to_float.to(device)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images = self.to_float(batch.images.to(self.device, non_blocking=True))
        return images, batch.targets.to(self.device, non_blocking=True)
