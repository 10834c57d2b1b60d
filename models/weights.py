"""Weights: files read without running anything in them, and state dicts that fit exactly or are refused."""

import argparse
import io
import itertools
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # of DistributedDataParallel and averages; of torch.compile
LINES = 8  # of each kind in a report
PACKED = 20  # times: no packing makes trained weights this much smaller


class WeightsError(Exception):
    """A weights file that cannot be used. The message says which, why, and what to do."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dictionary in a file that holds nothing but tensors, plain values and an argparse.Namespace.

    Its archive is whole to the last bit, and its tensors take no more memory than the file has bytes.
    """
    try:
        with _opened(path) as file:
            damage = _damage(file)
            if not damage:
                file.seek(0)
                with torch.serialization.safe_globals([argparse.Namespace]):
                    content = torch.load(file, map_location="cpu", weights_only=True)
                damage = _impossible_tensor(content, file)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|Unsupported (?:class|global|operand) (\S+)", str(error))
        what = f"it contains {next(filter(None, found.groups()))}" if found else "it is no plain torch file"
        raise WeightsError(
            f"{path}: refused, {what}, and reading it could run code; only tensors, plain values and "
            "argparse.Namespace are read. Save its state dict with torch.save and use that file"
        ) from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # of any kind: torch's reader trusts what it reads
        damage = str(error).partition("\n")[0] or type(error).__name__
    if damage:
        raise WeightsError(f"{path}: not a whole torch file ({damage}); fetch or save it again")
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a state dict or a checkpoint")
    return content


def archive_damage(path: str | Path) -> str | None:
    """What is wrong with a file that is an archive, as torch writes them; None if nothing, or if it is none."""
    try:
        with _opened(path) as file:
            return _damage(file)
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, zlib.error) as error:
        return str(error) or "it is cut off"


def _damage(file: BinaryIO) -> str | None:
    with _records(file) as archive:
        records = archive.infolist()
        unpacked = sum(record.file_size for record in records)
        if any(record.compress_type for record in records) or unpacked > file.seek(0, io.SEEK_END):
            return f"a torch file is not packed, this one would become {unpacked} bytes"
        # all sums are 0 where torch.serialization.set_crc32_options(False) was called
        bad = archive.testzip() if any(record.CRC for record in records) else None
    return bad and f"the bytes of {bad} are not those that were written"


def _records(file: BinaryIO) -> zipfile.ZipFile:
    """The archive that a file is; an empty one for a file of the kind that torch wrote before it wrote archives."""
    file.seek(0)
    return zipfile.ZipFile(file) if file.read(4) == b"PK\3\4" else zipfile.ZipFile(io.BytesIO(), "w")


def _opened(path: str | Path) -> BinaryIO:
    """The torch file at a path or, of an archive that packs one (`….pt.zip`), that one."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith((".pt", ".pth")) and "__MACOSX" not in name]
            if len(names) == 1:
                if archive.getinfo(names[0]).file_size > PACKED * Path(path).stat().st_size:
                    raise ValueError(f"it packs {names[0]} more than {PACKED} times")
                return io.BytesIO(archive.read(names[0]))
    return open(path, "rb")


def _impossible_tensor(content: Any, file: BinaryIO) -> str | None:
    """What cannot be of the tensors in the content of a file."""
    size, storages = file.seek(0, io.SEEK_END), {}
    for tensor in _tensors(content):
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return f"it has a tensor without values, or one that is not dense: {tensor.device}, {tensor.layout}"
        if tensor.numel() * tensor.element_size() > size:
            return f"it has a tensor of {tensor.numel()} elements, more than the file holds"
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    with _records(file) as archive:  # before torch 2.7 or so, a tensor may go beyond the end of its record
        sizes = [record.file_size for record in archive.infolist() if "/data/" in record.filename]
    claims, there = (sorted(sizes, reverse=True) for sizes in (storages.values(), sizes))
    if there and any(claim > length for claim, length in itertools.zip_longest(claims, there, fillvalue=0)):
        return "its tensors have more bytes than its records"
    return None


def _tensors(content: Any) -> Iterator[Tensor]:
    """All of them in lists, dictionaries and namespaces, which may hold each other and themselves."""
    left, seen = [content], set()
    while left:
        thing = left.pop()
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, (dict, list, tuple, set, argparse.Namespace)) and id(thing) not in seen:
            seen.add(id(thing))
            thing = vars(thing) if isinstance(thing, argparse.Namespace) else thing
            left += thing.values() if isinstance(thing, dict) else thing


def model_state(checkpoint: Mapping[str, Any], ema: bool = False, source: str = "checkpoint") -> dict[str, Tensor]:
    """The network's state dict out of a checkpoint, or out of a state dict saved from a wrapped network.

    With `ema` the averaged weights of a checkpoint; a plain state dict is what it is.
    """
    for name in ("model", "state_dict"):  # ours and torchvision's, or timm's
        if isinstance(checkpoint.get(name), Mapping):
            if ema and f"{name}_ema" not in checkpoint:
                missing = f"has no averaged weights ('{name}_ema')"
                raise WeightsError(f"{source}: {missing}; leave out --model-ema to use '{name}'")
            checkpoint = checkpoint[f"{name}_ema" if ema else name]
            break
    state = {WRAPPERS.sub("", name): value for name, value in checkpoint.items() if name != "n_averaged"}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{source}: neither a state dict nor a checkpoint with one under 'model'")
    return state


def classifier(state: Mapping[str, Tensor]) -> str:
    """The name of the classifier in a network's state dict: of its matrices, or convolutions of one pixel, the last."""
    matrices = (name for name, value in state.items() if value.ndim > 1 and value.shape[2:].numel() == 1)
    names = [name for name in matrices if name.endswith(".weight")]
    return names[-1].removesuffix(".weight") if names else ""


def num_classes(state: Mapping[str, Tensor], source: str = "state dict") -> int:
    """For how many classes these weights are."""
    name = f"{classifier(state)}.weight"
    if name not in state:
        raise WeightsError(f"{source}: has no classifier, so it is not of a network that is known here")
    return len(state[name])


def settings_of(content: Mapping[str, Any], kinds: Mapping[str, type], source: str = "checkpoint") -> dict[str, Any]:
    """What the arguments in a checkpoint say of these settings, each of its kind; None for what they do not say."""
    arguments = content.get("args")
    said = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    for name, kind in kinds.items():
        if said.get(name) is not None and type(said[name]) is not kind:
            what = f"says {name}={said[name]!r:.40}, which should be of type {kind.__name__}"
            raise WeightsError(f"{source}: {what}: a training command did not write that. Use its weights alone")
    return {name: said.get(name) for name in kinds}


def words_of(content: Mapping[str, Any], key: str, source: str = "checkpoint") -> list[str] | None:
    """A list of names in a checkpoint, `classes` or sub-networks `trained`, if it says them."""
    names = content.get(key)
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise WeightsError(f"{source}: its {key!r} should be a list of names, not {names!r:.40}")
    return names


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
