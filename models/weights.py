"""Weights: files read without running anything in them, and state dicts that fit exactly or are refused."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # of DistributedDataParallel and averages; of torch.compile
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
    if isinstance(checkpoint.get("model"), Mapping):
        name = "model_ema" if ema else "model"
        if name not in checkpoint:
            raise WeightsError(f"{source}: has no averaged weights ('model_ema'); leave out --model-ema to use 'model'")
        checkpoint = checkpoint[name]
    state = {WRAPPERS.sub("", name): value for name, value in checkpoint.items() if name != "n_averaged"}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{source}: neither a state dict nor a checkpoint with one under 'model'")
    return state


def num_classes(state: Mapping[str, Tensor]) -> int:
    """For how many classes these weights are: the length of the last tensor, which is the classifier's bias."""
    return len(list(state.values())[-1])


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str = "state dict") -> None:
    """Load a state dict that fits exactly, or change nothing and say what does not fit."""
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name}: {list(state[name].shape)} in the file, {list(own[name].shape)} in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    misfits = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if not any(misfits.values()):
        own.update(state)  # it also holds the versions of its modules, which some demand and a plain dict lacks
        model.load_state_dict(own)
        return
    if missing and not unexpected and all("_skip." in name for name in missing):
        hint = "Only skip norms are missing: ordinary weights start a training by --init-from (load_plain)"
    elif any(part in line for line in reshaped for part in ("fc.", "head", "classifier")):
        hint = "The classifier differs: the weights are for another number of classes"
    else:
        hint = "Use the model, and the settings of it, that the weights were made with"
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in misfits.items() if names)
    lines = [f"{source}: does not fit {type(model).__name__}: of its tensors are {counts}. {hint}"]
    for kind, names in misfits.items():
        lines += [f"  {kind}: {name}" for name in names[:LINES]]
        if len(names) > LINES:
            lines.append(f"  {kind}: … and {len(names) - LINES} more")
    raise WeightsError("\n".join(lines))
