"""Masks as COCO's files hold them: runs of pixels down the columns, packed into text or not; and polygons."""

from types import ModuleType
from typing import Any

import numpy as np

from utils.errors import UserError


def runs_of(mask: np.ndarray) -> list[int]:
    """How long each run is, in turn of zeros and ones, beginning with zeros."""
    pixels = mask.T.ravel().astype(np.int8)
    return np.diff([0, *np.flatnonzero(np.diff(pixels, prepend=0)), len(pixels)]).tolist()


def unpacked(text: str) -> list[int]:
    """The runs in a text: letters of five bits each, the lowest first.

    From the fourth on a run is given as its difference from the run two before it.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode():
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last letter of this run
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def pycocotools() -> ModuleType:
    """What knows polygons."""
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError("masks that are polygons need a package that is not here: pip install pycocotools") from None
    return mask


def decode(outline: Any, height: int, width: int) -> np.ndarray:
    """The mask of an annotation's `segmentation`, as bytes of 0 and 1."""
    if isinstance(outline, dict):
        runs = outline["counts"]
        runs = unpacked(runs) if isinstance(runs, str) else runs
        pixels = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
        if len(pixels) != height * width:
            raise ValueError(f"a mask has {len(pixels)} pixels, its image {height} x {width}")
        return np.ascontiguousarray(pixels.reshape(width, height).T)
    mask = pycocotools()
    return mask.decode(mask.merge(mask.frPyObjects(outline, height, width)))
