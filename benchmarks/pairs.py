"""A task on which depth pays more than on Fashion-MNIST: two of its garments in one picture, which two?

    python -m benchmarks.pairs                             writes runs/pairs, for train_adn.py --data-path runs/pairs
    python -m benchmarks.pairs --halve -o runs/pairs-18    of 18 x 18 pixels: four times as fast

A picture is 36 x 36 pixels, the mean of one garment in its upper left and another in its lower right; 10 x 10 classes,
the upper one's number first. Pairs are drawn by chance, training pictures of training garments, test of test garments.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from deploy.command import exit_code
from utils.data.named import IDX_FILES, fashion_mnist
from utils.files import whole_file
from utils.flags.data import cache_folder
from utils.flags.parsing import COUNT

SIDE, APART = 36, 8  # pixels of a picture, and from one garment to the other


def main(argv: Sequence[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.pairs", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("-o", "--output-dir", type=Path, default=Path("runs/pairs"), metavar="DIR", help="default: %(default)s")
    add("--train", type=COUNT, default=120_000, metavar="N", help="training pictures (default: %(default)s)")
    add("--test", type=COUNT, default=10_000, metavar="N", help="test pictures (default: %(default)s)")
    add("--halve", action="store_true", help="each pixel the mean of four: 18 x 18")
    add("--download", action="store_true", help="fetch fashion-mnist if it is not here")
    args = parser.parse_args(argv)
    return exit_code("benchmarks.pairs", lambda: write(args))


def write(args: argparse.Namespace) -> str:
    parts = fashion_mnist(cache_folder() / "data", args.download)
    (train, train_targets), (test, test_targets) = paired(*parts.train, args.train, 0), paired(*parts.val, args.test, 1)
    if args.halve:
        train, test = (F.avg_pool2d(images.float(), 2).round().to(torch.uint8) for images in (train, test))
    arrays = (train, train_targets, test, test_targets)
    for name, array in zip(IDX_FILES, arrays, strict=True):
        with whole_file(args.output_dir / name) as file:
            file.write(bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape))
            file.write(array.numpy().tobytes())
    side = train.shape[-1]
    return f"written: {args.output_dir}, {args.train} and {args.test} pictures of {side} x {side}, 100 classes"


def paired(images: Tensor, targets: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(images), (2, count), generator=torch.Generator().manual_seed(seed))
    pictures = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    for place, which in zip((slice(0, SIDE - APART), slice(APART, SIDE)), chosen, strict=True):
        pictures[:, place, place] += images[which, 0] // 2
    return pictures, (10 * targets[chosen[0]] + targets[chosen[1]]).to(torch.uint8)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
