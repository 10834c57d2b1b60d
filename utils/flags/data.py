"""The command line's flags about data and their defaults per data set. No torch here: `--help` has to be quick."""

import math
import os
from argparse import ArgumentParser, Namespace, _ArgumentGroup
from pathlib import Path

from utils.errors import UserError

SMALL = {  # data sets that live in memory: image size, probability of a horizontal flip, loader workers at most
    "digits": (32, 0.0, 0),  # a mirrored digit is another shape
    "fashion-mnist": (28, 0.5, 4),
    "cifar10": (32, 0.5, 4),
    "cifar100": (32, 0.5, 4),
}


FETCHED = ("fashion-mnist", "cifar10", "cifar100")
POLICIES = ("ra", "ta_wide", "augmix", "imagenet", "cifar10", "svhn")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adn"


def data_flags(parser: ArgumentParser) -> None:
    """Everything about data on the command line."""
    _source_flags(parser.add_argument_group("data"))
    _augmentation_flags(parser.add_argument_group("crops and augmentation"))


def _source_flags(group: _ArgumentGroup) -> None:
    add = group.add_argument
    add("--data-path", metavar="PATH", help=f"a folder with train/ and val/, or one of {', '.join(SMALL)}")
    few = "only N images, taken evenly from the whole (default: all)"
    add("--train-images", type=int, metavar="N", help=f"train on {few}")
    add("--val-images", type=int, metavar="N", help=f"test on {few}")
    add("--download", action="store_true", help=f"fetch {', '.join(FETCHED)} if they are not here")
    add("--download-dir", metavar="DIR", help="where they are kept (default: ~/.cache/adn/data)")
    workers = "loader processes (default: 16, at most one per CPU core; fewer for data sets in memory)"
    add("-j", "--workers", type=int, metavar="N", help=workers)
    prefetch = "batches each worker holds ready (default: about 512 images, at least 2 batches)"
    add("--prefetch", type=int, metavar="N", help=prefetch)
    cache = "keep the scanned list of files, and use it again until a class folder changes"
    add("--cache-dataset", action="store_true", help=cache)
    decode = "tensor: about twice as fast; pil: the classic chain to the bit (default: to train tensor, to test pil)"
    add("--decode", choices=("pil", "tensor"), help=decode)
    corrupt = "unreadable image: stop and name it, or go on without it and count it"
    add("--on-corrupt", choices=("error", "skip"), default="error", help=corrupt)


def _augmentation_flags(group: _ArgumentGroup) -> None:
    add = group.add_argument
    small = ", ".join(f"{name} {size}" for name, (size, _, _) in SMALL.items())
    add("--train-crop-size", type=int, metavar="N", help=f"random crop (default: 224; {small})")
    add("--val-resize-size", type=int, metavar="N", help=f"shorter side before that crop (default: 256; {small})")
    add("--val-crop-size", type=int, metavar="N", help=f"central crop (default: 224; {small})")
    kinds = ("nearest", "bilinear", "bicubic")
    add("--interpolation", choices=kinds, help="of all resizing (default: bilinear)")
    add("--hflip-prob", type=float, metavar="P", help="probability of a horizontal flip (default: 0.5; digits 0)")
    add("--auto-augment", metavar="POLICY", help=f"one of {', '.join(POLICIES)}")
    add("--ra-magnitude", type=int, default=9, metavar="N", help="of --auto-augment ra, 0 to 30")
    add("--augmix-severity", type=int, default=3, metavar="N", help="of --auto-augment augmix, 1 to 10")
    add("--random-erase", type=float, default=0.0, metavar="P", help="probability of erasing a rectangle")
    add("--mixup-alpha", type=float, default=0.0, metavar="A", help="mixup, 0 = off")
    add("--cutmix-alpha", type=float, default=0.0, metavar="A", help="cutmix, 0 = off; with mixup: either, by chance")
    add(
        "--ra-sampler",
        action="store_true",
        help="an epoch shows fewer images, each several times",
    )
    add("--ra-reps", type=int, default=3, metavar="N", help="how many times")


def complete(args: Namespace) -> None:
    """Fill in the defaults that depend on the data set, where the user gave nothing, and check the whole."""
    size, flip, most_workers = SMALL.get(args.data_path, (None, 0.5, 16))
    defaults = {
        "train_crop_size": size or 224,
        "val_resize_size": size or 256,
        "val_crop_size": size or 224,
        "interpolation": "bilinear",
        "hflip_prob": flip,
        "workers": min(most_workers, cores_per_process()),
        "prefetch": max(2, min(16, 512 // max(args.batch_size, 1))),
        "download_dir": str(cache_folder() / "data"),
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    check(args)


def check(args: Namespace) -> None:
    """Settings that no image could satisfy: better said now than by a worker in the first epoch."""
    for name, (low, high) in _BOUNDS.items():
        value = getattr(args, name)
        if not low <= value <= high:
            bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise UserError(f"--{name.replace('_', '-')} {value} is out of range: give a number {bounds}")
    if args.val_crop_size > args.val_resize_size:
        raise UserError(
            f"--val-crop-size {args.val_crop_size} does not fit into --val-resize-size {args.val_resize_size}: "
            f"lower the first or raise the second"
        )
    for flag, images in {"--train-images": args.train_images, "--val-images": args.val_images}.items():
        if images is not None and images < 1:
            raise UserError(f"{flag} {images} is out of range: give a number at least 1")
    for flag, idle in {
        "--decode": args.decode and args.data_path in SMALL,
        "--cache-dataset": args.cache_dataset and args.data_path in SMALL,
        "--download": args.download and args.data_path not in FETCHED,
    }.items():
        if idle:
            raise UserError(f"{flag} has no effect on --data-path {args.data_path}: leave it out")
    if args.auto_augment not in (None, *POLICIES):
        raise UserError(f"--auto-augment {args.auto_augment} is unknown: choose one of {', '.join(POLICIES)}")


_BOUNDS = {
    "train_crop_size": (1, math.inf),
    "val_resize_size": (1, math.inf),
    "val_crop_size": (1, math.inf),
    "workers": (0, math.inf),
    "prefetch": (1, math.inf),
    "hflip_prob": (0, 1),
    "random_erase": (0, 1),
    "mixup_alpha": (0, math.inf),
    "cutmix_alpha": (0, math.inf),
    "ra_magnitude": (0, 30),
    "augmix_severity": (1, 10),
    "ra_reps": (1, math.inf),
}


def cores_per_process() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
