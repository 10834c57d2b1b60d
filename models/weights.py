"""Weights: reading files without running anything in them, strict loading, and starting from an ordinary network."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from .adaptive import AdaptiveDepth, twins

PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and averaged models; of torch.compile
LINES = 8  # of each kind in a report


class WeightsError(Exception):
    """A weights file that cannot be used. The message says which, why, and what to do."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dictionary in a file that holds nothing but tensors, plain values and an argparse.Namespace."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|Unsupported (?:class|global|operand) (\S+)", str(error))
        what = f"it contains {next(filter(None, found.groups()))}" if found else "it is no plain torch file"
        raise WeightsError(
            f"{path}: refused, {what}, and reading it could run code; only tensors, plain values and "
            "argparse.Namespace are read. Save its state dict with torch.save and use that file"
        ) from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a whole torch file ({reason}); fetch or save it again") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a state dict or a checkpoint")
    return content


def model_state(checkpoint: Mapping[str, Any], ema: bool = False, source: str = "checkpoint") -> dict[str, Tensor]:
    """The network's state dict out of a checkpoint, or out of a state dict saved from a wrapped network.

    With `ema` the averaged weights of a checkpoint; a plain state dict is what it is.
    """
    if "model" in checkpoint and isinstance(checkpoint["model"], Mapping):
        name = "model_ema" if ema else "model"
        if name not in checkpoint:
            raise WeightsError(f"{source}: has no averaged weights ('model_ema'); leave out --model-ema to use 'model'")
        checkpoint = checkpoint[name]
    state = {_bare(name): value for name, value in checkpoint.items() if name != "n_averaged"}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{source}: neither a state dict nor a checkpoint with one under 'model'")
    return state


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def num_classes(state: Mapping[str, Tensor]) -> int:
    """For how many classes these weights are: the length of the last tensor, which is the classifier's bias."""
    return len(list(state.values())[-1])


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str = "state dict") -> None:
    """Load a state dict that fits exactly, or change nothing and say what does not fit."""
    own = model.state_dict()
    kinds = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name}: {list(state[name].shape)} in the file, {list(own[name].shape)} in the model"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    if any(kinds.values()):
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
        raise WeightsError(
            f"{source}: does not fit {type(model).__name__}: of its tensors are {counts}. {_hint(kinds)}"
            + _report(kinds)
        )
    model.load_state_dict(state)


def _hint(kinds: Mapping[str, list[str]]) -> str:
    missing = kinds["missing"]
    if missing and all("_skip." in name for name in missing) and not kinds["unexpected"]:
        return "Only skip norms are missing: ordinary weights start a training by --init-from (load_plain)"
    if any("fc." in line or "head" in line or "classifier" in line for line in kinds["of another shape"]):
        return "The classifier differs: the weights are for another number of classes"
    return "Use the model, and the settings of it, that the weights were made with"


def _report(kinds: Mapping[str, list[str]]) -> str:
    lines = []
    for kind, names in kinds.items():
        lines += [f"\n  {kind}: {name}" for name in names[:LINES]]
        if len(names) > LINES:
            lines.append(f"\n  {kind}: … and {len(names) - LINES} more")
    return "".join(lines)


def load_plain(
    model: AdaptiveDepth, weights: Mapping[str, Tensor] | WeightsEnum, *, new_head: bool = False, progress: bool = True
) -> list[str]:
    """Start from an ordinary network: its weights become the super-net's, each skip norm a copy of its twin.

    Weights that already hold skip norms are loaded as they are. With `new_head`, a classifier for another number of
    classes stays as the model has it. Returns the names of what was left so.
    """
    source = f"{type(weights).__name__}.{weights.name}" if isinstance(weights, WeightsEnum) else "state dict"
    state = weights.get_state_dict(progress=progress, check_hash=True) if isinstance(weights, WeightsEnum) else weights
    state = dict(model_state(state, source=source))
    adaptive = any("_skip." in name for name in state)
    target = model if adaptive else model.view(model.super_net)
    own = target.state_dict()
    kept = [name for name in state if new_head and name in own and state[name].shape != own[name].shape]
    kept = [name for name in kept if own[name].shape[1:] == state[name].shape[1:]]
    state.update({name: own[name].clone() for name in kept})
    load_state(target, state, source)
    if not adaptive:
        copy_norms_to_twins(model)
    return kept


def copy_norms_to_twins(model: nn.Module) -> None:
    """Every skip norm becomes a copy of the norm that it stands in for."""
    for module in model.modules():
        for name, twin in twins(module).items():
            twin.load_state_dict(getattr(module, name).state_dict())
