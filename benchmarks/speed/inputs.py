"""From JPEG files to tensors on one core: ours against torchvision's classic chain of PIL."""

import itertools
import tempfile
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torchvision.datasets.folder import pil_loader
from torchvision.io import write_jpeg
from torchvision.transforms import autoaugment, transforms
from torchvision.transforms.functional import InterpolationMode

import presets
from benchmarks.speed.results import INPUT, Group
from utils.evaluate.timing import Effort, take_turns
from utils.flags import arguments

POLICIES = {"ta_wide": autoaugment.TrivialAugmentWide, "ra": autoaugment.RandAugment}
CASES = {"train plain": "", "train ta_wide": "ta_wide", "train ra": "ra", "evaluation": ""}  # and their policy
DEFAULTS = "--train-crop-size 224 --interpolation bilinear --hflip-prob 0.5"  # of the command, for photographs
Chain = Callable[[str], torch.Tensor]


def measure(count: int, effort: Effort) -> list[Group]:
    """Every chain over the same files, with other random numbers each time. One thread: processor time counts."""
    threads, groups = torch.get_num_threads(), []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(folder, count)

        def over_all(chain: Chain, seeds: itertools.count) -> None:
            torch.manual_seed(next(seeds))
            for path in paths:
                chain(path)

        for case in CASES:
            chains = {"classic": classic(case), "ours, pil": ours(case, "pil"), "ours, tensor": ours(case, "tensor")}
            calls = {way: partial(over_all, chain, itertools.count()) for way, chain in chains.items()}
            groups.append(Group(INPUT, case, count, take_turns(calls, torch.device("cpu"), effort)))
    torch.set_num_threads(threads)
    return groups


def photographs(folder: str, count: int) -> list[str]:
    """JPEGs with structure at every scale, of about the size and weight of ImageNet's: 500 x 375, 100 kB."""
    paths = [f"{folder}/{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        torch.manual_seed(number)
        noise = [torch.randn(1, 3, detail, detail) * 300 / detail**0.5 for detail in (4, 16, 64, 256)]
        pixels = 128 + sum(F.interpolate(layer, (375, 500), mode="bicubic") for layer in noise)
        write_jpeg(pixels[0].clamp(0, 255).byte(), path, quality=93)
    return paths


def classic(case: str) -> Chain:
    """What torchvision's reference scripts do in a worker: PIL and transforms v1, then floats and normalisation."""
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if case == "evaluation":
        steps = [transforms.Resize(256), transforms.CenterCrop(224)]
    if CASES[case]:
        steps.append(POLICIES[CASES[case]](interpolation=InterpolationMode.BILINEAR))
    steps += [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float)]
    chain = transforms.Compose([*steps, transforms.Normalize(presets.IMAGENET_MEAN, presets.IMAGENET_STD)])
    return lambda path: chain(pil_loader(path))


def ours(case: str, decode: str) -> Chain:
    policy = ["--auto-augment", CASES[case]] if CASES[case] else []
    args = arguments.parser().parse_args([*DEFAULTS.split(), *policy])
    transform = presets.eval_transform() if case == "evaluation" else presets.train_transform(args)
    return lambda path: transform(presets.DECODERS[decode](path))
