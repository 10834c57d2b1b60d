"""Checkpoints: everything a run needs to go on as if nothing had happened, in files that are whole or not there.

A file has the official implementation's layout (`model`, `optimizer`, `lr_scheduler`, `epoch`, `args`, `model_ema`,
`scaler`) and ours beside it: `progress` says where inside an epoch the run is, `classes` on what it was trained. Random
numbers need no state: each step and each image derives its own from (seed, epoch, number). So a run that goes on from a
checkpoint ends with the bits of one that was never interrupted; on a GPU, whose kernels add in any order, only with
--deterministic.
"""

import argparse
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from utils import processes
from utils.data.loading import refuse_other_classes
from utils.errors import UserError
from utils.train import official_checkpoint
from utils.train.optim import MovingAverage, build_scheduler, group_names

log = logging.getLogger(__name__)

# Arguments that a continued run may change: in silence, since they change nothing of what comes out, or said in a line,
# since they change how it is computed or tested. Any other but --epochs only by --change-settings.
IN_SILENCE = (
    "resume change_settings from_run output_dir keep checkpoint_steps print_freq tensorboard test_all_every world_size "
    "dist_url device workers prefetch data_path download download_dir cache_dataset on_corrupt start_epoch init_from "
    "weights weights_url weights_dir latency_batch no_picture"
)
SAID = (
    "amp amp_dtype channels_last torch_compile sync_bn deterministic decode calibrate val_images val_resize_size "
    "val_crop_size"
)

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
    corrupt: list[str] = field(default_factory=list)  # images that could not be read, each once


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
    trained: list[str]  # names of the sub-networks that the method trains and tests
    teacher: str | None = None  # a sum of its weights, which are no part of a checkpoint
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])  # its name, which a continued run keeps

    def content(self) -> dict[str, Any]:
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.scheduler.state_dict(),
            "epoch": self.progress.epoch - 1,  # the last one that is complete, as in the official layout
            "args": self.args,
            "progress": asdict(self.progress),
            "classes": self.classes,
            "trained": self.trained,
            "run": self.run,
            "launch": processes.launch(),
            "world_size": processes.world_size(),
            "versions": {"torch": str(torch.__version__)},
        }
        if self.teacher:
            content["teacher"] = self.teacher
        if self.ema:
            content["model_ema"] = self.ema.state_dict()
        networks = {"model": self.model, **({"model_ema": self.ema.module} if self.ema else {})}
        if own := {name: found for name, network in networks.items() if (found := network.statistics())}:
            content["statistics"] = own  # each sub-network's
        if self.scaler.is_enabled():
            content["scaler"] = self.scaler.state_dict()
        return content

    def restore(self, content: dict[str, Any], load: Load, source: str) -> None:
        """Take over the content of the checkpoint `source`."""
        _check_it_belongs(content, self, source)
        changed = _changed_settings(content, self.args, source)
        load(self.model, content["model"], source)
        if self.ema:
            averaged = content.get("model_ema")
            if averaged is None:
                log.warning("%s has no moving average: --model-ema starts it anew from its weights", source)
                averaged = {**self.model.state_dict(), "n_averaged": torch.tensor(0)}
            count, weights = averaged["n_averaged"], averaged.items()
            load(self.ema.module, {n.removeprefix("module."): w for n, w in weights if n != "n_averaged"}, source)
            self.ema.n_averaged.copy_(count)
        for name, statistics in content.get("statistics", {}).items():
            network = self.model if name == "model" else self.ema and self.ema.module
            if network:
                network.load_statistics(statistics, source)
        if content.get("scaler"):
            self.scaler.load_state_dict(content["scaler"])
        try:
            if "progress" not in content:
                content = official_checkpoint.in_our_layout(content, group_names(self.model, self.args))
            self._restore_optimizer(content["optimizer"], keep_ours=bool(changed))
            if changed:  # the schedule is made anew, and moved to where the run is
                self.scheduler = build_scheduler(self.optimizer, self.args, content["progress"]["epoch"])
            else:
                self.scheduler.load_state_dict(content["lr_scheduler"])
        except (ValueError, KeyError, TypeError) as error:
            way_out = "resume with the flags of the run that wrote it, or start anew from its weights with --weights"
            problem = f"its optimizer or schedule is not the one asked for ({error})"
            raise UserError(f"{source}: {problem}: {way_out}") from None
        for name, value in content["progress"].items():
            setattr(self.progress, name, value)
        if not isinstance(self.progress.corrupt, list):  # a number, in checkpoints of before they were named
            self.progress.corrupt = []
        self.run = content.get("run", self.run)

    def _restore_optimizer(self, saved: Mapping[str, Any], keep_ours: bool) -> None:
        """`keep_ours`: this run's settings (weight decay, momentum, …), not the checkpoint's."""
        ours, theirs = self.optimizer.param_groups, saved["param_groups"]
        if len(ours) != len(theirs):
            raise ValueError(f"it has {len(theirs)} parameter groups, this run {len(ours)}")
        groups = []
        for our, their in zip(ours, theirs, strict=True):
            if any((key in our) != (key in their) for key in OF_ONE_KIND):
                raise ValueError(f"it was not written with {type(self.optimizer).__name__}")
            mine = {key for key in our if key in IMPLEMENTATION or (keep_ours and key != "params")}
            groups.append({**their, **{key: our[key] for key in mine}})
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _check_it_belongs(content: Mapping[str, Any], state: State, source: str) -> None:
    """A checkpoint can only be continued by the same network on the same data."""
    missing = [key for key in ("model", "optimizer", "lr_scheduler", "epoch") if key not in content]
    if missing:
        raise UserError(f"{source}: no checkpoint of a run (it has no {', '.join(missing)}): use it with --weights")
    model = getattr(content.get("args"), "model", state.args.model)
    if model != state.args.model:
        raise UserError(f"{source}: is of --model {model}, this run has --model {state.args.model}")
    if content.get("teacher", state.teacher) != state.teacher and not state.args.change_settings:
        sums = f"weights {content['teacher']}, this run's {state.teacher}"
        raise UserError(f"{source}: was taught by another --teacher ({sums}): give that, or say --change-settings")
    way_out = "resume with the data of that run, or start from its weights"
    refuse_other_classes(source, content.get("classes"), state.classes, way_out)


def _changed_settings(content: Mapping[str, Any], args: argparse.Namespace, source: str) -> list[str]:
    """Names of the arguments by which this run would come to something else than the one that wrote the checkpoint."""
    old, new = vars(content.get("args") or argparse.Namespace()), vars(args)
    changed = {name: f"{name} {old[name]} → {new[name]}" for name in new if old.get(name, new[name]) != new[name]}
    bound = [name for name in changed if name not in f"{IN_SILENCE} {SAID}".split()]
    refused = [changed[name] for name in bound if name != "epochs"]
    if refused and not args.change_settings:
        way_out = "continue with its settings, or say --change-settings to go on with these"
        raise UserError(f"{source}: was written with other settings ({', '.join(refused)}): {way_out}")
    said = [text for name, text in changed.items() if name not in IN_SILENCE.split()]
    if said:
        log.warning("changed since %s was written: %s", source, ", ".join(said))
    now = processes.world_size()
    before = content.get("world_size") or now
    old_batch = old.get("batch_size", args.batch_size) * old.get("grad_accum", args.grad_accum) * before
    batch = args.batch_size * args.grad_accum * now
    if old_batch != batch:
        sizes = f"{old_batch} → {batch} ({before} → {now} processes)"
        log.warning("global batch %s; the learning rate is not changed", sizes)
    return bound
