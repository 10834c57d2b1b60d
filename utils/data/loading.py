"""From `--data-path` to batches: the data, and loaders that hand (images, targets, unreadable files) to the loop."""

import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

import presets
from sampler import EvenBatches, TrainSampler
from utils.data import named as named_datasets
from utils.data.folders import FileList, list_images
from utils.data.images import ArrayImages, Corrupt, FileImages, Item
from utils.errors import UserError
from utils.flags.data import SMALL, complete


class Data(NamedTuple):
    train: Dataset | None  # None with --test-only
    val: Dataset
    classes: list[str]
    name: str


class Batch(NamedTuple):
    images: Tensor  # uint8, N x 3 x H x W
    targets: Tensor  # int64, N
    corrupt: list[str]  # files that could not be read, each with the reason; N is smaller by as many unless replaced


def load_data(args: Namespace) -> Data:
    """The data that `args` describe. Settings that depend on the data set are filled in where the user gave none.

    Folders: a random crop is zoomed into for training; for evaluation the shorter side is resized, the centre cropped.
    Small images by name: resized to the crop size, to train shifted by up to an eighth. Digits are not flipped.
    """
    complete(args)
    if not args.data_path:
        raise UserError(f"--data-path is missing: give a folder with train/ and val/, or one of {', '.join(SMALL)}")
    return _named_data(args) if args.data_path in SMALL else _folder_data(args)


def _train_settings(args: Namespace, small: bool) -> dict:
    transform = presets.train_transform(args, small)
    return {"transform": transform, "seed": args.seed, "substitute": args.on_corrupt == "skip"}


def _eval_settings(args: Namespace) -> dict:
    return {"transform": presets.eval_transform(args.val_resize_size, args.val_crop_size, args.interpolation)}


def _named_data(args: Namespace) -> Data:
    found = named_datasets.load(args)
    train = None
    if not args.test_only:
        arrays = _few("--train-images", args.train_images, *found.train)
        train = ArrayImages(*arrays, **_train_settings(args, small=True))
    val = ArrayImages(*_few("--val-images", args.val_images, *found.val), **_eval_settings(args))
    return Data(train, val, found.classes, args.data_path)


def _folder_data(args: Namespace) -> Data:
    root = Path(args.data_path)
    if not root.is_dir():
        raise UserError(f"--data-path {root}: no such folder, and none of the names {', '.join(SMALL)}")
    listed = list_images(root / "val", args.cache_dataset)
    decode = presets.DECODERS[args.decode or "pil"]
    files, targets = _few("--val-images", args.val_images, listed.files, listed.targets)
    val = FileImages(str(root / "val"), files, targets, decode, **_eval_settings(args))
    train = None if args.test_only else _train_folder(args, root / "train", listed)
    return Data(train, val, listed.classes, root.resolve().name)


def _train_folder(args: Namespace, folder: Path, val: FileList) -> FileImages:
    listed = list_images(folder, args.cache_dataset)
    if listed.classes != val.classes:
        raise UserError(f"{folder} and {folder.parent / 'val'} hold different classes: {_difference(listed, val)}")
    decode = presets.DECODERS[args.decode or "tensor"]
    files, targets = _few("--train-images", args.train_images, listed.files, listed.targets)
    return FileImages(str(folder), files, targets, decode, **_train_settings(args, small=False))


def _few(flag: str, wanted: int | None, images: Any, targets: Any) -> tuple[Any, Any]:
    """So many of the images. Spread evenly, since those of a class may follow each other; alike for every seed."""
    if wanted is None:
        return images, targets
    if wanted > len(targets):
        raise UserError(f"{flag} {wanted}: there are only {len(targets)}; lower it or leave it out")
    chosen = np.arange(wanted) * len(targets) // wanted
    return images[chosen], targets[chosen]


def _difference(train: FileList, val: FileList) -> str:
    said = []
    for where, here, there in (("train", train, val), ("val", val, train)):
        only = sorted(set(here.classes) - set(there.classes))
        if only:
            said.append(f"only in {where}: {', '.join(only[:5])}{' …' if len(only) > 5 else ''}")
    return "; ".join(said)


def collate(items: Sequence[Item]) -> Batch:
    readable = [item for item in items if not isinstance(item, Corrupt)]
    corrupt = [str(item) for item in items if isinstance(item, Corrupt)]
    if not readable:
        return Batch(torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), corrupt)
    images, targets = default_collate(readable)  # in a worker: straight into shared memory
    return Batch(images, targets, corrupt)


def train_loader(data: Data, args: Namespace, sampler: TrainSampler) -> DataLoader:
    """No image is dropped, no batch is tiny."""
    return _loader(data.train, args, batch_sampler=EvenBatches(sampler, args.batch_size))


def eval_loader(data: Data, args: Namespace, sampler: Sampler) -> DataLoader:
    return _loader(data.val, args, sampler=sampler, batch_size=args.batch_size)


def _loader(dataset: Dataset, args: Namespace, **kw: object) -> DataLoader:
    if args.workers > 0:
        kw |= {"persistent_workers": True, "prefetch_factor": args.prefetch, "worker_init_fn": _leave_signals_alone}
        if sys.platform == "linux":
            kw["multiprocessing_context"] = "fork"  # starts in milliseconds and shares the list of files
    return DataLoader(
        dataset,
        num_workers=args.workers,
        collate_fn=collate,
        pin_memory=args.device != "cpu" and torch.cuda.is_available(),
        generator=torch.Generator(),  # else each start of an epoch would draw from the run's own generator
        **kw,
    )


def _leave_signals_alone(_worker: int) -> None:
    """Ctrl-C and SLURM signal all processes; the main one finishes its step with the workers' help, then ends them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
