"""Checkpoints: everything a run needs to go on as if nothing had happened, in files that are whole or not there.

A file has the official implementation's layout (`model`, `optimizer`, `lr_scheduler`, `epoch`, `args`, `model_ema`,
`scaler`) and ours beside it: `progress` says where inside an epoch the run is, `classes` on what it was trained. Random
numbers need no state: each step and each image derives its own from (seed, epoch, number). So a run that goes on from a
checkpoint ends with the bits of one that was never interrupted; on a GPU, whose kernels add in any order, only with
--deterministic.
"""

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import processes
from utils.data.loading import refuse_other_classes
from utils.errors import UserError
from utils.files import as_user_error, link_or_copy, whole_file
from utils.train import official_checkpoint
from utils.train.optim import MovingAverage, group_names

log = logging.getLogger(__name__)

NEWEST, PREVIOUS, BEST = "checkpoint.pth", "checkpoint_previous.pth", "best.pth"

# Settings in an optimizer's groups: those that only AdamW, RMSprop, SGD have, and those that say how it computes, not
# what: the latter are this run's, whatever the run that wrote the checkpoint had.
OF_ONE_KIND = ("betas", "alpha", "dampening")
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")

Load = Callable[[nn.Module, dict, str], None]  # a state dict into a network, or an error that says what does not fit


@dataclass
class Progress:
    """Where a run is. `step` and `samples` count within the epoch; samples are those of all processes together."""

    epoch: int = 0
    step: int = 0
    samples: int = 0
    best: float = -1.0
    meters: list = field(default_factory=list)  # running sums of every process
    corrupt: int = 0

    def next_epoch(self) -> None:
        self.epoch, self.step, self.samples, self.meters = self.epoch + 1, 0, 0, []


@dataclass
class State:
    """The objects of a run that change while it trains."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: MovingAverage | None
    scaler: torch.amp.GradScaler  # idle unless the precision is fp16
    progress: Progress
    args: argparse.Namespace
    classes: list[str]

    def content(self) -> dict[str, Any]:
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.scheduler.state_dict(),
            "epoch": self.progress.epoch - 1,  # the last one that is complete, as in the official layout
            "args": self.args,
            "progress": asdict(self.progress),
            "classes": self.classes,
            "world_size": processes.world_size(),
            "versions": {"torch": str(torch.__version__)},
        }
        if self.ema:
            content["model_ema"] = self.ema.state_dict()
        if self.scaler.is_enabled():
            content["scaler"] = self.scaler.state_dict()
        return content

    def restore(self, content: dict[str, Any], load: Load, source: str) -> None:
        """Take over the content of the checkpoint `source`."""
        _check_it_belongs(content, self, source)
        load(self.model, content["model"], source)
        if self.ema:
            averaged = content.get("model_ema")
            if averaged is None:
                log.warning("%s has no moving average: --model-ema starts it anew from its weights", source)
                averaged = {**self.model.state_dict(), "n_averaged": torch.tensor(0)}
            count, weights = averaged["n_averaged"], averaged.items()
            load(self.ema.module, {n.removeprefix("module."): w for n, w in weights if n != "n_averaged"}, source)
            self.ema.n_averaged.copy_(count)
        if content.get("scaler"):
            self.scaler.load_state_dict(content["scaler"])
        try:
            if "progress" not in content:
                content = official_checkpoint.in_our_layout(content, group_names(self.model, self.args))
            self._restore_optimizer(content["optimizer"])
            self.scheduler.load_state_dict(content["lr_scheduler"])
        except (ValueError, KeyError, TypeError) as error:
            way_out = "resume with the flags of the run that wrote it, or start anew from its weights with --weights"
            problem = f"its optimizer or schedule is not the one asked for ({error})"
            raise UserError(f"{source}: {problem}: {way_out}") from None
        for name, value in content["progress"].items():
            setattr(self.progress, name, value)
        _tell_what_changed(content, self.args)

    def _restore_optimizer(self, saved: Mapping[str, Any]) -> None:
        ours, theirs = self.optimizer.param_groups, saved["param_groups"]
        if len(ours) != len(theirs):
            raise ValueError(f"it has {len(theirs)} parameter groups, this run {len(ours)}")
        groups = []
        for our, their in zip(ours, theirs, strict=True):
            if any((key in our) != (key in their) for key in OF_ONE_KIND):
                raise ValueError(f"it was not written with {type(self.optimizer).__name__}")
            groups.append({**their, **{key: our[key] for key in IMPLEMENTATION if key in our}})
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _check_it_belongs(content: Mapping[str, Any], state: State, source: str) -> None:
    """A checkpoint can only be continued by the same network on the same data."""
    missing = [key for key in ("model", "optimizer", "lr_scheduler", "epoch") if key not in content]
    if missing:
        raise UserError(f"{source}: no checkpoint of a run (it has no {', '.join(missing)}): use it with --weights")
    model = getattr(content.get("args"), "model", state.args.model)
    if model != state.args.model:
        raise UserError(f"{source}: is of --model {model}, this run has --model {state.args.model}")
    way_out = "resume with the data of that run, or start from its weights"
    refuse_other_classes(source, content.get("classes"), state.classes, way_out)


def _tell_what_changed(content: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Other arguments than the checkpoint's are allowed, but not in silence."""
    if content.get("args") is None:
        return
    old, new, now = vars(content["args"]), vars(args), processes.world_size()
    names = [name for name in new if name not in ("resume", "world_size") and old.get(name, new[name]) != new[name]]
    changed = ", ".join(f"{name} {old[name]} → {new[name]}" for name in names)
    if changed:
        log.warning("arguments differ from the checkpoint's: %s (optimizer and schedule go on as saved)", changed)
    before = content.get("world_size") or now
    old_batch = old.get("batch_size", 0) * old.get("grad_accum", 1) * before
    batch = args.batch_size * args.grad_accum * now
    if old_batch != batch:
        sizes = f"{old_batch} → {batch} ({before} → {now} processes)"
        log.warning("global batch %s; the learning rate is not changed", sizes)


def save(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the newest checkpoint; the one before it stays beside it."""
    newest = folder / NEWEST
    if newest.exists():
        link_or_copy(newest, folder / PREVIOUS)
    try:
        with whole_file(newest) as file:
            torch.save(content, file)
    except (UserError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError of its own
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        way_out = "the last checkpoint is still there: make room, then continue with --resume auto"
        raise UserError(f"{newest}: cannot be written ({reason}); {way_out}") from None


def keep_epoch(folder: Path, epoch: int, epochs: int, best: bool) -> None:
    """Later checkpoints replace the newest; it stays under a name of its own every 10th epoch, the last 30, if best."""
    if epoch % 10 == 0 or epoch > epochs - 30:
        link_or_copy(folder / NEWEST, folder / f"model_{epoch}.pth")
    if best:
        link_or_copy(folder / NEWEST, folder / BEST)


def newest_readable(folder: Path, read: Callable[[Path], dict[str, Any]]) -> Path | None:
    """The newest checkpoint in `folder` that can be read, or None if there is none at all."""
    numbered = sorted(folder.glob("model_*.pth"), key=lambda path: path.stat().st_mtime, reverse=True)
    candidates = [path for path in (folder / NEWEST, folder / PREVIOUS, *numbered) if path.exists()]
    for path in candidates:
        try:
            read(path)
            return path
        except UserError as error:
            log.warning("passed over: %s", error)
    if candidates:
        raise UserError(f"{folder}: none of its {len(candidates)} checkpoints can be read; start anew elsewhere")
    return None


def rename_older_run(folder: Path) -> None:
    """A new run in the folder of an old one takes nothing away from it: the old checkpoints get other names."""
    for path in (folder / NEWEST, folder / PREVIOUS, folder / BEST):
        if path.exists():
            with as_user_error(path, "of an earlier run, cannot be renamed; give another --output-dir"):
                renamed = path.replace(path.with_name(f"{path.stem}_of_{int(path.stat().st_mtime)}.pth"))
            log.warning("%s of an earlier run is now %s (--resume auto would have continued it)", path, renamed.name)


def remove_half_written(folder: Path) -> None:
    """Remove what a run that was killed while writing has left."""
    for path in folder.glob(".*.pth*.tmp"):
        with as_user_error(path, "half written by a killed run, cannot be removed; give another --output-dir"):
            path.unlink(missing_ok=True)
