"""A folder of class folders of images, scanned into numpy arrays; the scan can be kept for the next start.

Classes and files are found and ordered as torchvision's ImageFolder does it.
"""

import hashlib
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.errors import UserError
from utils.files import whole_file
from utils.flags.data import cache_folder

log = logging.getLogger(__name__)


class FileList(NamedTuple):
    files: np.ndarray  # bytes of one width, relative to the folder
    targets: np.ndarray
    classes: list[str]


def list_images(folder: Path, cache: bool = False) -> FileList:
    """All images below `folder`; with `cache` from an earlier scan, unless a class folder has changed since."""
    try:
        if not cache:
            return _scan(folder)
        # Adding, removing or renaming an image in a class folder changes that folder's time.
        times = [f"{entry.name} {entry.stat().st_mtime_ns}" for entry in _class_folders(folder)]
        stamp = np.frombuffer(hashlib.sha256(repr(times).encode()).digest(), np.uint8)
        path = cache_folder() / f"files-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:20]}.npz"
        try:
            with np.load(path, allow_pickle=False) as kept:
                if np.array_equal(kept["stamp"], stamp):
                    return FileList(kept["files"], kept["targets"], kept["classes"].tolist())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # not there, or not ours: scan again
        found = _scan(folder)
        try:
            with whole_file(path) as file:
                np.savez(file, stamp=stamp, classes=np.array(found.classes), files=found.files, targets=found.targets)
        except UserError as error:
            log.warning("--cache-dataset: %s; going on without", error)
        return found
    except OSError as error:
        raise UserError(f"{os.fsdecode(error.filename)}: {error.strerror}; check path and permissions") from None


def _class_folders(folder: Path) -> list[os.DirEntry]:
    if not folder.is_dir():
        needed = "--data-path needs train/ and val/ with a folder per class in each; for val/, --val-split 0.1 can do"
        raise UserError(f"{folder}: no such folder; {needed}")
    with os.scandir(folder) as entries:
        found = (e for e in entries if e.is_dir() and not e.name.startswith(".") and not _leads_back(e.path))
        classes = sorted(found, key=lambda e: e.name)
    if not classes:
        raise UserError(f"{folder}: holds no class folders; put the images of each class into a folder of its own")
    return classes


def _leads_back(path: str | bytes) -> bool:
    """Whether this is a link to a folder above it, round which one could walk for ever."""
    if not os.path.islink(path):
        return False
    place = Path(os.fsdecode(path))
    target = place.resolve()
    return any(above.resolve().is_relative_to(target) for above in place.parents)


def _walk(folder: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    """All folders from `folder` down, through links too, each with the names of its files."""

    def complain(error: OSError) -> None:  # else os.walk would pass over what it cannot read
        raise error

    for parent, below, names in os.walk(folder, onerror=complain, followlinks=True):
        below[:] = [name for name in below if not _leads_back(os.path.join(parent, name))]
        yield parent, names


def _scan(folder: Path) -> FileList:
    classes, files, counts = _class_folders(folder), [], []
    extensions, start = tuple(map(os.fsencode, IMG_EXTENSIONS)), len(os.fsencode(folder)) + 1
    for entry in classes:
        before = len(files)
        for parent, names in sorted(_walk(os.fsencode(entry.path))):
            images = sorted(name for name in names if name.lower().endswith(extensions))
            files.extend(os.path.join(parent, name)[start:] for name in images)
        if len(files) == before:
            kinds = " ".join(IMG_EXTENSIONS)
            raise UserError(f"{entry.path}: a class folder without images ({kinds}); fill it or remove it")
        counts.append(len(files) - before)
    targets = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return FileList(np.array(files), targets, [entry.name for entry in classes])
