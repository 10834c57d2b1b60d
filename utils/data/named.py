"""Data small enough for memory: the bundled digits, Fashion-MNIST, CIFAR through torchvision, files like MNIST's."""

import gzip
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision.datasets
from torch import Tensor

from utils.errors import UserError
from utils.flags.data import NAMED

DIGITS = Path(__file__).parents[2] / "data" / "digits.npz"
IDX_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


class Arrays(NamedTuple):
    images: Tensor  # uint8, N x 1 x H x W or N x 3 x H x W
    targets: Tensor


class Parts(NamedTuple):
    train: Arrays
    val: Arrays
    classes: list[str]


def load(name: str, folder: Path, download: bool) -> Parts:
    """What is called `name`: it is here, in `folder`, or fetched into that; else a folder of files like MNIST's."""
    if name == "digits":
        return digits()
    if name == "fashion-mnist":
        return fashion_mnist(folder, download)
    if name not in NAMED:
        return idx_folder(Path(name))
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    if download:
        _fetch(kind, folder)
    try:
        parts = [kind(folder, train=train) for train in (True, False)]  # checks the sums of the files
    except RuntimeError:
        raise _missing(name, folder) from None
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
    train, val = (Arrays(pixels, torch.tensor(part.targets)) for pixels, part in zip(images, parts, strict=True))
    return Parts(train, val, parts[0].classes)


def digits() -> Parts:
    """1,442 images to train and 355 to validate, 8 x 8, always the same split: of each digit every fifth validates."""
    with np.load(DIGITS, allow_pickle=False) as kept:
        levels, targets = kept["images"], kept["targets"].astype(np.int64)
    images, to_validate = np.round(levels * (255 / 16)).astype(np.uint8)[:, None], np.zeros(len(targets), bool)
    for digit in range(10):
        to_validate[np.flatnonzero(targets == digit)[4::5]] = True
    both = (~to_validate, to_validate)
    train, val = (Arrays(torch.from_numpy(images[part]), torch.from_numpy(targets[part])) for part in both)
    return Parts(train, val, [str(digit) for digit in range(10)])


def fashion_mnist(folder: Path, download: bool) -> Parts:
    """From a folder with the four published files, packed or not, wherever they come from."""
    for found in (folder / "FashionMNIST" / "raw", folder, DEBIAN_FASHION_MNIST):
        if all((found / name).exists() or (found / f"{name}.gz").exists() for name in IDX_FILES):
            break
    else:
        if not download:
            raise _missing("fashion-mnist", folder, "or install Debian's package dataset-fashion-mnist")
        _fetch(torchvision.datasets.FashionMNIST, folder)
        found = folder / "FashionMNIST" / "raw"
    return idx_folder(found)._replace(classes=torchvision.datasets.FashionMNIST.classes)


def idx_folder(folder: Path) -> Parts:
    """The four files of MNIST and its like, packed or not. Classes are numbers."""
    parts = []
    for names in (IDX_FILES[:2], IDX_FILES[2:]):
        images, targets = (read_idx(folder, name) for name in names)
        if images.ndim != 3 or targets.shape != images.shape[:1]:
            shapes = f"{list(images.shape)} and {list(targets.shape)}"
            raise UserError(f"{folder}: {' and '.join(names)} are {shapes}; they should be images, and a class of each")
        parts.append(Arrays(images[:, None], targets.long()))
    return Parts(*parts, [str(number) for number in range(1 + max(int(part.targets.max()) for part in parts))])


def read_idx(folder: Path, name: str) -> Tensor:
    """An array in the idx format of MNIST: two zeros, type, number of dimensions, big-endian sizes, bytes."""
    packed, plain = folder / f"{name}.gz", folder / name
    path = plain if plain.exists() else packed
    try:
        data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
        sizes = np.frombuffer(data, ">u4", count=data[3], offset=4).tolist()
        return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes).copy())
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: not a whole idx file ({error}); remove it and fetch it again") from None


def _missing(name: str, folder: Path, other: str = "or put its files there") -> UserError:
    return UserError(f"{name} is not in {folder}: pass --download, or --download-dir if it lies elsewhere, {other}")


def _fetch(kind: type, folder: Path) -> None:
    """Download unless it is there. One process of the machine does it, the others wait and find it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            if os.name == "posix":  # Windows has no flock: there each process fetches for itself
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)
            kind(folder, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{kind.__name__} cannot be fetched into {folder}: {reason}") from None
