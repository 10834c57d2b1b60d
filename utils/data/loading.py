"""From `--data-path` to batches: the data, and loaders that hand (images, targets, unreadable files) to the loop."""

import math
import multiprocessing
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, default_collate

import presets
from presets import DECODE_ERRORS, Image
from sampler import Key, as_key
from utils.data import named
from utils.data.folders import FileList, list_images
from utils.errors import UserError
from utils.flags.data import NAMED, habits_of, processes_here
from utils.rng import derive, seeded

SHARED_MEMORY = "/dev/shm"  # where Linux keeps what a worker hands over; a container has 64 MB of it by default
MOST_SUBSTITUTES = 100  # so many unreadable files in a row are not a few bad images but a broken disk
IN_HAND = 2  # batches that the loop holds while the workers make others


class Data(NamedTuple):
    train: Dataset | None  # None with --test-only
    val: Dataset
    classes: list[str]
    name: str


class Batch(NamedTuple):
    images: Tensor | list[Tensor]  # uint8, N x 3 x H x W, float once on the device; a list: of each size a view
    targets: Tensor  # int64, N
    corrupt: list[str]  # files that could not be read, each with the reason; N is smaller by as many unless replaced


class Corrupt(str):
    """In the place of an image that could not be read: the file, and the reason in brackets."""


Item = tuple[Tensor | list[Tensor], int] | Corrupt


@dataclass(eq=False)
class Images(Dataset):
    """Images by key (epoch, index, repeat): everything random about one follows from its key and the run's seed.

    So it looks the same whichever worker loads it, and a resumed run sees what the uninterrupted one would have seen.
    What is held per image are rows of arrays: a Python object per file would be copied, by its reference count alone,
    into every worker in the course of an epoch (pytorch issue 13246).
    """

    rows: np.ndarray | Tensor  # names of files, or pixels
    targets: np.ndarray | Tensor
    read: Callable[[str | Tensor], Image | Corrupt]  # makes an image of a path, or of pixels
    transform: Callable[[Image], Tensor | list[Tensor]]
    folder: str | os.PathLike | None = None  # of the files; pixels have none
    seed: int = 0
    substitute: bool = False  # for a corrupt image, the next readable one
    side: float = 224.0  # of a square with as many pixels as the transform gives, all views together

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """A file's name below its folder, or the number of what is in memory."""
        return str(index) if self.folder is None else os.fsdecode(self.rows[index])

    def path(self, index: int) -> str:
        return os.path.join(self.folder or "", self.name(index))

    def __getitem__(self, key: Key | int) -> Item:
        epoch, index, repeat = as_key(key)
        image = self.read(self.rows[index] if self.folder is None else self.path(index))
        if isinstance(image, Corrupt):
            return image
        with seeded(derive(self.seed, epoch, index, repeat)):
            return self.transform(image), int(self.targets[index])

    def __getitems__(self, keys: Sequence[Key | int]) -> list[Item]:
        """The items of a batch. What could not be read comes before what takes its place."""
        items, tries = [], min(MOST_SUBSTITUTES, len(self)) if self.substitute else 1
        for key in keys:
            epoch, index, repeat = as_key(key)
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


def load_data(args: Namespace, test_sizes: Sequence[int] | None = None) -> Data:
    """The data that `args` describe, every default filled in; for a test, views of `test_sizes` if not of --sizes.

    Folders: a random crop is zoomed into for training; for evaluation the shorter side is resized, the centre cropped.
    Small images in memory: resized to the crop size, to train shifted by up to an eighth. Digits are not flipped.
    """
    if not args.data_path:
        raise UserError(f"--data-path is missing: give a folder with train/ and val/, or one of {', '.join(NAMED)}")
    root, in_memory = Path(args.data_path), habits_of(args.data_path) is not None
    to_train = args.calibrate or not args.test_only
    if in_memory:
        found = named.load(args.data_path, Path(args.download_dir), args.download)
    else:
        found = _scan_folders(root, to_train, args.val_split, args.cache_dataset)

    def images(part: str, decode: str, **kw: Any) -> Images:
        rows, targets = getattr(found, part)[:2]
        wanted = getattr(args, f"{part}_images")
        if wanted is not None:
            if wanted > len(targets):
                raise UserError(f"--{part}-images {wanted}: there are only {len(targets)}; lower it or leave it out")
            # Spread evenly, since those of a class may follow each other; alike for every seed.
            chosen = np.arange(wanted) * len(targets) // wanted
            rows, targets = rows[chosen], targets[chosen]
        if in_memory:
            return Images(rows, targets, read_pixels, **kw)
        read, folder = partial(read_file, presets.DECODERS[args.decode or decode]), "train" if args.val_split else part
        return Images(rows, targets, read, folder=root / folder, **kw)

    train = None
    if to_train:
        sizes = test_sizes if args.test_only and test_sizes else args.sizes  # what is to be calibrated, or trained
        transform = presets.train_transform(args, zoom=not in_memory, sizes=sizes)
        own = {"transform": transform, "seed": args.seed, "substitute": args.on_corrupt == "skip"}
        train = images("train", "tensor", side=math.hypot(*(sizes or [args.train_crop_size])), **own)
    sizes = test_sizes or args.sizes or [args.val_crop_size]
    val = images("val", "pil", transform=presets.test_transform(args, sizes), side=math.hypot(*sizes))
    return Data(train, val, found.classes, args.data_path if args.data_path in NAMED else root.resolve().name)


def _scan_folders(root: Path, to_train: bool, val_split: float | None, cache: bool) -> named.Parts:
    if not root.is_dir():
        raise UserError(f"--data-path {root}: no such folder, and none of the names {', '.join(NAMED)}")
    if val_split:
        return split(list_images(root / "train", cache), val_split)
    train, val = None, list_images(root / "val", cache)
    if to_train:
        train = list_images(root / "train", cache)
        if train.classes != val.classes:
            only = {"train": set(train.classes) - set(val.classes), "val": set(val.classes) - set(train.classes)}
            where = "; ".join(f"only in {part}: {first_few(sorted(names), 5)}" for part, names in only.items() if names)
            raise UserError(f"{root / 'train'} and {root / 'val'} hold different classes: {where}")
    return named.Parts(train, val, val.classes)


def split(whole: FileList, share: float) -> named.Parts:
    """Of each class this share validates, evenly spread over its files, and at least one; the rest trains."""
    to_validate = np.zeros(len(whole.files), bool)
    of_classes = np.split(np.arange(len(whole.files)), np.flatnonzero(np.diff(whole.targets)) + 1)
    for name, own in zip(whole.classes, of_classes, strict=True):
        if len(own) < 2:
            raise UserError(f"--val-split: class {name} has a single image, which cannot both train and validate")
        count = max(1, round(share * len(own)))
        to_validate[own[(2 * np.arange(count) + 1) * len(own) // (2 * count)]] = True
    parts = (FileList(whole.files[part], whole.targets[part], whole.classes) for part in (~to_validate, to_validate))
    return named.Parts(*parts, whole.classes)


def refuse_other_classes(source: str, known: Sequence[str] | None, classes: Sequence[str], way_out: str) -> None:
    """Weights that know the names of their classes are of use for no others."""
    if known is not None and list(known) != list(classes):
        theirs, ours = (f"{len(names)} classes ({first_few(names, 3)})" for names in (known, classes))
        raise UserError(f"{source}: was trained on other data, with {theirs}; --data-path has {ours}: {way_out}")


def first_few(names: Sequence[str], most: int) -> str:
    return ", ".join(map(str, names[:most])) + (", …" if len(names) > most else "")


def collate(items: Sequence[Item]) -> Batch:
    readable = [item for item in items if not isinstance(item, Corrupt)]
    corrupt = [str(item) for item in items if isinstance(item, Corrupt)]
    if not readable:
        return Batch(torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), corrupt)
    images, targets = default_collate(readable)  # in a worker: straight into shared memory
    return Batch(images, targets, corrupt)


def train_loader(data: Data, args: Namespace, batches: Sampler) -> DataLoader:
    return make_loader(data.train, args, batches, args.workers)


def eval_loader(data: Data, args: Namespace, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Each image exactly once over all processes. Nothing is padded: the shares may differ by one."""
    share = range(rank, len(data.val), world_size)
    batches = BatchSampler(share, args.batch_size, drop_last=False)
    return make_loader(data.val, args, batches, args.workers)


class _OnceWanted(Sampler):
    """Another sampler's batches, and none while the workers are only to start."""

    def __init__(self, batches: Sampler):
        self.batches, self.wanted = batches, True

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list]:
        return iter(self.batches if self.wanted else ())


def make_loader(dataset: Images, args: Namespace, batches: Sampler | Sequence[list], workers: int) -> DataLoader:
    """Batches in pageable memory: torch's pinning thread would take the GPU before the process has chosen its own."""
    kw, workers = {}, min(workers, len(batches))
    if workers > 0:
        ahead = prefetch(args, dataset.side, workers)
        kw = {"persistent_workers": True, "prefetch_factor": ahead, "worker_init_fn": _end_with_main}
        if sys.platform == "linux":
            kw["multiprocessing_context"] = "fork"  # starts in milliseconds and shares the list of files
    return DataLoader(
        dataset,
        batch_sampler=_OnceWanted(batches),
        num_workers=workers,
        collate_fn=getattr(dataset, "collate", collate),  # data of another kind have their own
        generator=torch.Generator(),  # else each start of an epoch would draw from the run's own generator
        **kw,
    )


def start_workers(loader: DataLoader) -> None:
    """Fork the workers now and load nothing: later a fork could catch a thread of NCCL or CUDA that holds a lock."""
    if loader.num_workers > 0:
        loader.batch_sampler.wanted = False
        iter(loader)  # persistent workers stay for every later pass over the loader
        loader.batch_sampler.wanted = True


def prefetch(args: Namespace, crop: float, workers: int) -> int:
    """Batches that each worker holds ready: those the user asked for, or about 512 images as far as memory allows.

    `crop`: the side of an image; `Images.side`.
    """
    wanted, least = args.prefetch or max(2, min(16, 512 // args.batch_size)), args.prefetch or 1
    if not os.path.isdir(SHARED_MEMORY):
        return wanted
    memory, size = os.statvfs(SHARED_MEMORY), args.batch_size * (3 * round(crop**2) + 8)
    free = memory.f_bavail * memory.f_frsize // processes_here()
    room, needed = max(0, free // size - IN_HAND), (workers * least + IN_HAND) * size
    if room < workers * least:
        smaller = "a smaller --prefetch or " if least > 1 else ""
        raise UserError(
            f"--workers {workers}: their batches need {needed / 1e6:.0f} MB of shared memory, {SHARED_MEMORY} has "
            f"{free / 1e6:.0f} MB for this process: enlarge it (docker run --shm-size) or give {smaller}--workers "
            f"{room // least}"
        )
    return min(wanted, room // workers)


def _end_with_main(_worker: int) -> None:
    """Only the main process's own SIGTERM, or its death, ends a worker.

    Ctrl-C, torchrun and SLURM signal all processes, and the main one finishes its step with the workers' help. But it
    ends them by SIGTERM when it fails: were they deaf to that one too, it would wait for them until torchrun kills it.
    """
    main = multiprocessing.parent_process().pid

    def wait_for_the_end() -> None:
        while os.getppid() == main:
            received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
            if received and received.si_pid == main:
                break
        os._exit(0)

    for number in {signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGINT)}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # Linux; elsewhere torch's own handler ends the worker at any SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=wait_for_the_end, daemon=True).start()
