"""Checkpoints: everything a run needs to go on as if nothing had happened, in files that are whole or not there.

A file has the official implementation's layout (`model`, `optimizer`, `lr_scheduler`, `epoch`, `args`, `model_ema`,
`scaler`) and ours beside it: `progress` says where inside an epoch the run is, `classes` on what it was trained. Random
numbers need no state: each step and each image derives its own from (seed, epoch, number).
"""

import argparse
import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import processes as distributed
from utils.errors import UserError
from utils.files import whole_file
from utils.train.optim import MovingAverage, group_names, ordered

log = logging.getLogger(__name__)

NEWEST, PREVIOUS, BEST = "checkpoint.pth", "checkpoint_previous.pth", "best.pth"
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")  # how an optimizer computes, not what

KINDS = ("betas", "alpha", "dampening")  # settings that only one kind of optimizer has: AdamW, RMSprop, SGD


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
    scaler: torch.amp.GradScaler | None
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
            "world_size": distributed.world_size(),
            "versions": {"torch": str(torch.__version__)},
        }
        if self.ema:
            content["model_ema"] = self.ema.state_dict()
        if self.scaler:
            content["scaler"] = self.scaler.state_dict()
        return content

    def restore(self, content: dict[str, Any], load_model: Callable[[nn.Module, dict], None], source: str) -> None:
        """Take over a checkpoint's content; `load_model` loads a state dict or says what does not fit."""
        _check(content, self, source)
        load_model(self.model, content["model"])
        if self.ema:
            _restore_ema(self.ema, content.get("model_ema"), self.model, load_model)
        if self.scaler and content.get("scaler"):
            self.scaler.load_state_dict(content["scaler"])
        try:
            _restore_optimizer(self.optimizer, content, group_names(self.model, self.args))
            self.scheduler.load_state_dict(content["lr_scheduler"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{source}: its optimizer or schedule is not the one asked for ({error}): resume with the flags of the "
                "run that wrote it, or start anew from its weights with --weights"
            ) from None
        _restore_progress(self.progress, content, self.args)


def _check(content: dict[str, Any], state: State, source: str) -> None:
    missing = [key for key in ("model", "optimizer", "lr_scheduler", "epoch") if key not in content]
    if missing:
        raise UserError(f"{source}: no checkpoint of a run (it has no {', '.join(missing)}): use it with --weights")
    model = getattr(content.get("args"), "model", state.args.model)
    if model != state.args.model:
        raise UserError(f"{source}: is of --model {model}, this run has --model {state.args.model}")
    classes = content.get("classes")
    if classes is not None and list(classes) != state.classes:
        raise UserError(
            f"{source}: was trained on other data, with {_summary(classes)}; --data-path has "
            f"{_summary(state.classes)}: resume with the data of that run, or start from its weights"
        )


def _summary(classes: list[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})"


def _restore_ema(ema: MovingAverage, saved: dict | None, model: nn.Module, load_model: Callable) -> None:
    if saved is None:
        log.warning("the checkpoint has no moving average: --model-ema starts it anew from the checkpoint's weights")
        saved = {**model.state_dict(), "n_averaged": torch.tensor(0)}
    ema.n_averaged.copy_(saved["n_averaged"])
    load_model(ema.module, {k.removeprefix("module."): v for k, v in saved.items() if k != "n_averaged"})


def _restore_optimizer(optimizer: torch.optim.Optimizer, content: dict[str, Any], groups: dict[str, str]) -> None:
    saved = content["optimizer"]
    if "progress" not in content:
        saved = _in_our_order(saved, list(content["model"]), groups)
    for ours, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        if any((key in ours) != (key in theirs) for key in KINDS):
            raise ValueError(f"it was not written with {type(optimizer).__name__}")
        theirs.update({key: ours[key] for key in IMPLEMENTATION if key in ours})
    optimizer.load_state_dict(saved)


def _in_our_order(saved: dict[str, Any], names: list[str], groups: dict[str, str]) -> dict[str, Any]:
    """An official checkpoint numbers parameters in its own order, and leaves `pos_embedding` among the others."""
    theirs = {name: "other" if groups[name] == "pos_embedding" else groups[name] for name in names if name in groups}
    number_of = {name: n for n, name in enumerate(name for group in ordered(theirs).values() for name in group)}
    ours = ordered(groups)
    template = saved["param_groups"]
    if len(number_of) != sum(len(group["params"]) for group in template) or len(template) != len(ordered(theirs)):
        raise ValueError("its parameter groups are others")
    settings = dict(zip(ordered(theirs), template, strict=True))
    state, param_groups, count = {}, [], 0
    for key, members in ours.items():
        for offset, name in enumerate(members):
            if number_of[name] in saved["state"]:
                state[count + offset] = saved["state"][number_of[name]]
        group = dict(settings.get(key, settings["other"]), params=list(range(count, count + len(members))))
        param_groups.append(group)
        count += len(members)
    return {"state": state, "param_groups": param_groups}


def _restore_progress(progress: Progress, content: dict[str, Any], args: argparse.Namespace) -> None:
    saved = content.get("progress") or {"epoch": content["epoch"] + 1}
    for key, value in saved.items():
        setattr(progress, key, value)
    before, now = content.get("world_size"), distributed.world_size()
    old = content.get("args")
    changed = {
        name: (getattr(old, name), value)
        for name, value in vars(args).items()
        if old is not None
        and hasattr(old, name)
        and getattr(old, name) != value
        and name not in ("resume", "world_size")
    }
    if changed:
        told = ", ".join(f"{name} {was} → {now}" for name, (was, now) in changed.items())
        log.warning("arguments differ from the checkpoint's: %s (optimizer and schedule go on as saved)", told)
    old_batch = getattr(old, "batch_size", 0) * getattr(old, "grad_accum", 1) * (before or now)
    batch = args.batch_size * args.grad_accum * now
    if old and old_batch != batch:
        log.warning(
            "global batch %d → %d (%s → %d processes); the learning rate is not changed", old_batch, batch, before, now
        )


def save(folder: Path, content: dict[str, Any]) -> None:
    """Write the newest checkpoint; the one before it stays beside it."""
    newest = folder / NEWEST
    if newest.exists():
        keep_as(newest, folder / PREVIOUS)
    try:
        with whole_file(newest) as file:
            torch.save(content, file)
    except (UserError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError of its own
        raise UserError(
            f"{newest}: cannot be written ({_root_cause(error)}); the last checkpoint is still there: make room, "
            "then continue with --resume auto"
        ) from None


def _root_cause(error: BaseException) -> str:
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


def keep_as(path: Path, other: Path) -> None:
    """Give a file a second name, without a copy where the file system can."""
    temporary = other.with_name(f".{other.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, other)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{other}: cannot be written ({error.strerror}); {path} is whole") from None


def keep(folder: Path, epoch: int, epochs: int, best: bool) -> None:
    """Keep the newest checkpoint under further names: every 10th epoch, the last 30, and the best."""
    if epoch % 10 == 0 or epoch > epochs - 30:
        keep_as(folder / NEWEST, folder / f"model_{epoch}.pth")
    if best:
        keep_as(folder / NEWEST, folder / BEST)


def newest_good(folder: Path, read: Callable[[Path], dict[str, Any]]) -> Path | None:
    """The newest checkpoint in `folder` that can be read, or None if there is none at all."""
    numbered = sorted(folder.glob("model_*.pth"), key=lambda path: path.stat().st_mtime, reverse=True)
    candidates = [path for path in (folder / NEWEST, folder / PREVIOUS, *numbered) if path.exists()]
    for path in candidates:
        try:
            read(path)
        except UserError as error:
            log.warning("passed over: %s", error)
        else:
            return path
    if candidates:
        raise UserError(f"{folder}: none of its {len(candidates)} checkpoints can be read; start anew elsewhere")
    return None


def set_aside(folder: Path) -> None:
    """A new run in the folder of an old one takes nothing away from it: the old checkpoints get other names."""
    for name in (NEWEST, PREVIOUS, BEST):
        path = folder / name
        if path.exists():
            kept = path.with_name(f"{path.stem}_of_{int(path.stat().st_mtime)}.pth")
            path.replace(kept)
            log.warning("%s of an earlier run is now %s (--resume auto would have continued it)", path, kept.name)


def remove_leftovers(folder: Path) -> None:
    """What a run that was killed while writing has left."""
    for path in folder.glob(".*.pth*.tmp"):
        path.unlink(missing_ok=True)
