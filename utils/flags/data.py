"""The command line's flags about data, and their defaults per data set. No torch here: `--help` has to be quick."""

import gzip
import os
import re
import zlib
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError
from utils.flags.parsing import COUNT, FRACTION, NATURAL, NONNEGATIVE, bounded, one_of


class Habits(NamedTuple):
    """What suits a data set where the user says nothing."""

    crop_size: int
    resize_size: int
    hflip_prob: float
    most_workers: int


OF_FOLDERS = Habits(224, 256, 0.5, 16)
NAMED = {  # data sets known by name; they live in memory
    "digits": Habits(32, 32, 0.0, 0),  # a mirrored digit is another shape
    "fashion-mnist": Habits(28, 28, 0.5, 4),
    "cifar10": Habits(32, 32, 0.5, 4),
    "cifar100": Habits(32, 32, 0.5, 4),
}
IDX = "train-images-idx3-ubyte"  # MNIST's format: a folder with this file, packed or not, and its three companions
FETCHED = ("fashion-mnist", "cifar10", "cifar100")
# what holds unless a flag or the weights say otherwise
USUAL = {"model": "resnet18", "no_switchable_norms": False, "normalize": "imagenet", "interpolation": "bilinear"}
USUAL |= {"ra_magnitude": 9, "augmix_severity": 3, "random_erase": 0.0}
POLICIES = ("ra", "ta_wide", "augmix", "imagenet", "cifar10", "svhn")


def habits_of(data_path: str | None) -> Habits | None:
    """What suits data that live in memory; None for folders of image files."""
    if data_path in NAMED:
        return NAMED[data_path]
    for name, opened in ((IDX, open), (f"{IDX}.gz", gzip.open)):
        if data_path and (path := Path(data_path, name)).is_file():
            try:
                with opened(path, "rb") as file:
                    side = max(1, int.from_bytes(file.read(12)[8:], "big"))  # type, images, rows
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{path}: cannot be read ({error})") from None
            return Habits(side, side, 0.0, 4)
    return None


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adn"


def data_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    data = f"a folder with train/ and val/, or with {IDX} and the like, or one of {', '.join(NAMED)}"
    add("--data-path", metavar="PATH", help=data)
    share = "validate on this share of each class of train/, always the same, where there is no val/"
    add("--val-split", type=bounded(float, 0, 0.5, open_low=True), metavar="P", help=share)
    add("--train-images", type=COUNT, help="train on only N images, taken evenly from the whole (default: all)")
    add("--val-images", type=COUNT, help="test on only N images, taken evenly from the whole (default: all)")
    add("--download", action="store_true", help=f"fetch {', '.join(FETCHED)} if they are not here")
    add("--download-dir", metavar="DIR", help="where they are kept (default: ~/.cache/adn/data)")
    workers = "loader processes (default: 16, at most one per CPU core; fewer for data sets in memory)"
    add("-j", "--workers", type=NATURAL, help=workers)
    prefetch = "batches each worker holds ready (default: about 512 images, at least 2 batches, as /dev/shm has room)"
    add("--prefetch", type=COUNT, help=prefetch)
    cache = "keep the scanned list of files, and use it again until a class folder changes"
    add("--cache-dataset", action="store_true", help=cache)
    decode = "tensor: about twice as fast; pil: the classic chain to the bit (default: to train tensor, to test pil)"
    add("--decode", choices=("pil", "tensor"), help=decode)
    corrupt = "unreadable image: stop and name it, or go on without it and count it"
    add("--on-corrupt", choices=("error", "skip"), default="error", help=corrupt)
    _crops_and_augmentation_flags(parser)


def _crops_and_augmentation_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("crops and augmentation").add_argument
    named = ", ".join(f"{name} {habits.crop_size}" for name, habits in NAMED.items())
    add("--train-crop-size", type=COUNT, help=f"random crop (default: 224; {named})")
    add("--val-resize-size", type=COUNT, help=f"shorter side before that crop (default: 256; {named})")
    add("--val-crop-size", type=COUNT, help=f"central crop (default: 224; {named})")
    several = "--model meta_…: sides of the images that it is trained on, the largest first; they are the crops"
    add("--sizes", type=COUNT, nargs="+", metavar="N", help=f"{several} (default: the network's own)")
    pixels = "imagenet: by its mean and deviation; none: from 0 to 1 (default: imagenet, or that of the weights)"
    add("--normalize", choices=("imagenet", "none"), help=f"colours, {pixels}")
    kinds = ("nearest", "bilinear", "bicubic")
    add("--interpolation", choices=kinds, help="of all resizing (default: bilinear)")
    add("--hflip-prob", type=FRACTION, metavar="P", help="probability of a horizontal flip (default: 0.5; digits 0)")
    add("--auto-augment", type=one_of(POLICIES), metavar="POLICY", help=f"one of {', '.join(POLICIES)}")
    add("--ra-magnitude", type=bounded(int, 0, 30), metavar="N", help="of --auto-augment ra, 0 to 30 (default: 9)")
    severity = "of --auto-augment augmix, 1 to 10 (default: 3)"
    add("--augmix-severity", type=bounded(int, 1, 10), metavar="N", help=severity)
    add("--random-erase", type=FRACTION, metavar="P", help="probability of erasing a rectangle (default: 0)")
    add("--mixup-alpha", type=NONNEGATIVE, default=0.0, metavar="A", help="mixup, 0 = off")
    both = "cutmix, 0 = off; with mixup: either, by chance"
    add("--cutmix-alpha", type=NONNEGATIVE, default=0.0, metavar="A", help=both)
    add("--ra-sampler", action="store_true", help="an epoch shows fewer images, each several times")
    add("--ra-reps", type=COUNT, default=3, help="how many times")


def fill_defaults(args: Namespace, known: Mapping[str, object] = {}, usual_sizes: Sequence[int] | None = None) -> None:
    """Set what the user left open, by `known` (what a checkpoint was made with) or else by what suits the data.

    `usual_sizes`: of a network of several resolutions; by default it is trained on such, in proportion to the crop.
    The command calls it once; nothing else changes `args`. Then the whole is checked, which only now can be.
    """
    in_memory = habits_of(args.data_path)
    habits = in_memory or OF_FOLDERS
    has_val = in_memory or (args.data_path and Path(args.data_path, "val").is_dir())
    if args.val_split and has_val:
        raise UserError(f"--val-split: --data-path {args.data_path} has images of its own to validate: leave it out")
    known = {name: value for name, value in known.items() if value is not None}
    if has_val:
        known.pop("val_split", None)  # what trained on a part of another folder can be tested here
    crop = args.train_crop_size or args.val_crop_size or known.get("val_crop_size") or habits.crop_size
    in_proportion = usual_sizes and [max(1, round(size * crop / usual_sizes[0])) for size in usual_sizes]
    sizes = args.sizes or known.get("sizes") or in_proportion
    crop = sizes[0] if sizes else habits.crop_size
    if sizes and crop != known.get("val_crop_size"):
        for name in ("train_crop_size", "val_resize_size", "val_crop_size"):
            known.pop(name, None)
    defaults = USUAL | {
        "sizes": sizes,
        "train_crop_size": crop,
        "val_resize_size": crop * habits.resize_size // habits.crop_size,
        "val_crop_size": crop,
        "hflip_prob": habits.hflip_prob,
        "workers": min(habits.most_workers, cores_per_process()),
        "download_dir": str(cache_folder() / "data"),
        "calibrate": None if args.test_only or args.predict else 40,
    }
    for name, value in (defaults | known).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    _refuse_what_cannot_be(args, in_memory is not None)


def _refuse_what_cannot_be(args: Namespace, in_memory: bool) -> None:
    if args.val_crop_size > args.val_resize_size:
        both = f"--val-crop-size {args.val_crop_size} does not fit into --val-resize-size {args.val_resize_size}"
        raise UserError(f"{both}: lower the first or raise the second")
    if sizes := args.sizes:
        said = f"--sizes {' '.join(map(str, sizes))}"
        if not all(isinstance(size, int) for size in sizes) or sizes != sorted(set(sizes), reverse=True):
            raise UserError(f"{said}: give each once, the largest first")
        for flag, crop in {"--train-crop-size": args.train_crop_size, "--val-crop-size": args.val_crop_size}.items():
            if crop != sizes[0]:
                raise UserError(f"{said} are the crops, and {flag} {crop} is another: leave one of them out")
        if args.cutmix_alpha and len(sizes) > 1:
            raise UserError(f"--cutmix-alpha pastes places, which are others at each of {said}: leave it out")
    for flag, idle in {
        "--decode": args.decode and in_memory,
        "--cache-dataset": args.cache_dataset and in_memory,
        "--download": args.download and args.data_path not in FETCHED,
    }.items():
        if idle:
            raise UserError(f"{flag} has no effect on --data-path {args.data_path}: leave it out")


def processes_here() -> int:
    """How many processes of the run share this machine."""
    of_step = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")  # such as 8(x2),4: the first machines have the most
    return int(os.environ.get("LOCAL_WORLD_SIZE") or re.match(r"\d+", of_step)[0])


def cores_per_process() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes_here())
