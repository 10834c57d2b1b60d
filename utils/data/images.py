"""Images by key (epoch, index, repeat): everything random about an image follows from its key and the run's seed.

So an image looks the same whichever worker loads it, and a resumed run sees what the uninterrupted one would have seen.
What is held per image are rows of numpy arrays or tensors: a Python object per file would be copied, by its reference
count alone, into every worker in the course of an epoch (pytorch issue 13246).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from presets import DECODE_ERRORS, Image
from sampler import Key
from utils.rng import derive, seeded

MOST_SUBSTITUTES = 100  # so many unreadable files in a row are not a few bad images but a broken disk


class Corrupt(str):
    """In the place of an image that could not be read: the file, and the reason in brackets."""


Item = tuple[Tensor, int] | Corrupt


@dataclass(eq=False)
class Images(Dataset):
    rows: np.ndarray | Tensor  # names of files, or pixels
    targets: np.ndarray | Tensor
    read: Callable[[str | Tensor], Image | Corrupt]  # makes an image of a path, or of pixels
    transform: Callable[[Image], Tensor]
    folder: str | os.PathLike | None = None  # of the files; pixels have none
    seed: int = 0
    substitute: bool = False  # for a corrupt image, the next readable one

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """A file's name below its folder, or the number of what is in memory."""
        return str(index) if self.folder is None else os.fsdecode(self.rows[index])

    def path(self, index: int) -> str:
        return os.path.join(self.folder or "", self.name(index))

    def __getitem__(self, key: Key | int) -> Item:
        epoch, index, repeat = key if isinstance(key, tuple) else (0, key, 0)
        image = self.read(self.rows[index] if self.folder is None else self.path(index))
        if isinstance(image, Corrupt):
            return image
        with seeded(derive(self.seed, epoch, index, repeat)):
            return self.transform(image), int(self.targets[index])

    def __getitems__(self, keys: Sequence[Key | int]) -> list[Item]:
        """The items of a batch. What could not be read comes before what takes its place."""
        items, tries = [], min(MOST_SUBSTITUTES, len(self)) if self.substitute else 1
        for key in keys:
            epoch, index, repeat = key if isinstance(key, tuple) else (0, key, 0)
            for step in range(tries):
                items.append(self[epoch, (index + step) % len(self), repeat])
                if not isinstance(items[-1], Corrupt):
                    break
        return items


def read_file(decode: Callable[[str], Image], path: str) -> Image | Corrupt:
    try:
        return decode(path)
    except DECODE_ERRORS as error:
        reason = str(error).replace(path, "file") or type(error).__name__
        return Corrupt(f"{path} ({reason})")


def read_pixels(image: Tensor) -> Tensor:
    """Grey images, 1 x H x W, are shown as three equal channels."""
    return image.expand(3, -1, -1)
