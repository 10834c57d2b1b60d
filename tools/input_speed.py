"""Images per second and core from JPEG file to tensor: ours against torchvision's classic PIL chain, in one run.

    python -m tools.input_speed

Photographs are imitated: 500 x 375, about 100 kB, as in ImageNet. The chains take turns, round by round, so that a
machine whose speed drifts does not decide, and processor time is counted, not what others took of the machine.
Reported are medians over the rounds, and of the ratios in a round.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import autoaugment, transforms
from torchvision.transforms.functional import InterpolationMode

import presets
from utils.flags.data import data_flags, fill_defaults

CASES = {"train plain": None, "train ta_wide": "ta_wide", "train ra": "ra", "evaluation": None}


def photographs(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> list[str]:
    """JPEGs with structure at every scale, about as heavy as photographs of their size."""
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        pixels = np.full((size[1], size[0], 3), 128.0)
        for detail in (4, 16, 64, 256):
            coarse = random.normal(128, 300 / detail**0.5, (detail, detail, 3)).clip(0, 255).astype(np.uint8)
            pixels += np.asarray(PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC)) - 128.0
        paths.append(str(folder / f"{number}.jpg"))
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=93)
    return paths


def classic(case: str) -> Callable[[str], torch.Tensor]:
    """What torchvision's reference scripts do in a worker: PIL and transforms v1, then floats and normalisation."""
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if case == "evaluation":
        steps = [transforms.Resize(256), transforms.CenterCrop(224)]
    if CASES[case] == "ta_wide":
        steps.append(autoaugment.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
    if CASES[case] == "ra":
        steps.append(autoaugment.RandAugment(interpolation=InterpolationMode.BILINEAR))
    steps += [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float)]
    steps.append(transforms.Normalize(presets.IMAGENET_MEAN, presets.IMAGENET_STD))
    chain = transforms.Compose(steps)
    return lambda path: chain(pil_loader(path))


def ours(case: str, decode: str) -> Callable[[str], torch.Tensor]:
    parser = argparse.ArgumentParser()
    data_flags(parser)
    args = parser.parse_args([])
    args.batch_size, args.auto_augment = 256, CASES[case]
    fill_defaults(args)
    transform = presets.eval_transform() if case == "evaluation" else presets.train_transform(args)
    return lambda path: transform(presets.DECODERS[decode](path))


def measure(case: str, paths: list[str], rounds: int) -> dict[str, list[float]]:
    """Images per second of each chain in each round, on one core."""
    chains = {"classic": classic(case), "pil": ours(case, "pil"), "tensor": ours(case, "tensor")}
    rates: dict[str, list[float]] = {name: [] for name in chains}
    for number in range(-1, rounds):  # the first one warms up
        for name, chain in chains.items():
            torch.manual_seed(number)
            start = time.process_time()
            for path in paths:
                chain(path)
            if number >= 0:
                rates[name].append(len(paths) / (time.process_time() - start))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="images of a round")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder), args.images)
        print(f"{'':15}{'classic':>10}{'pil':>10}{'tensor':>10}{'tensor / classic (quartiles)':>34}")
        for case in CASES:
            rates = measure(case, paths, args.rounds)
            ratios = [fast / slow for fast, slow in zip(rates["tensor"], rates["classic"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            medians = "".join(f"{statistics.median(values):10.0f}" for values in rates.values())
            print(f"{case:15}{medians}{middle:18.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
