"""Measures exported ONNX files: size, differences from torch, and latency of every sub-network in the one file beside
that of the same sub-network exported by itself, which take turns on one thread.

    python -m deploy.latency --model resnet50 mobilenet_v2 --latency resnet50 -o results/export.md
"""

import argparse
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from deploy.command import exit_code
from deploy.export import load_format
from utils.files import whole_file
from utils.flags.parsing import COUNT

HEAD = """# Export

Written by `python -m deploy.latency`. Networks have random weights and all of their sub-networks are checked, with a
dynamic batch. *Size*: the ONNX file of all depths / that of the super-net alone. *Difference*: the largest of all
logits from torch's / the largest logit, in onnxruntime. *Latency*: of one image on one thread of onnxruntime, as
processor time (others were using the machine); a time is the median over the rounds, the ratio the median of the
rounds' ratios of the two calls, which took turns, quartiles in brackets.
"""


def write(args: argparse.Namespace) -> None:
    before = f"{args.output.read_text()}\n" if args.add and args.output.exists() else f"{HEAD}\n"
    page = before + measure(args)
    with whole_file(args.output) as file:
        file.write(page.encode())


def measure(args: argparse.Namespace) -> str:
    """A part of the page."""
    form = load_format("onnx")
    import onnx
    import onnxruntime
    import torch

    torch.set_num_threads(1)  # processor time of this thread then is what is measured
    versions = f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"
    statistics_are = "\nCalibrated: running statistics of every prefix's own.\n" * args.calibrated
    page = [f"{cpu_name()}; Python {platform.python_version()}, {versions}.\n{statistics_are}"]
    page += ["| network | images | file, MB | size | difference |", "|---|---|---|---|---|"]
    tables = []
    for name in dict.fromkeys((*args.model, *args.latency)):
        print(f"{name} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            line, table = network(form, name, Path(folder), args)
        page.append(line)
        tables += table
    return "\n".join([*page, *tables, ""])


def network(form, name: str, folder: Path, args: argparse.Namespace) -> tuple[str, list[str]]:
    """A network's line and, if it is timed, its table of latencies."""
    import torch

    import models
    from deploy import writing

    torch.manual_seed(0)
    size = args.image_size
    model = models.build(name, num_classes=1000, image_size=size).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor += 0.2 * torch.rand_like(tensor)  # twins differ
        elif tensor.is_floating_point() and tensor.abs().max() < 1e-3:
            tensor.normal_(std=0.1)  # a classifier of zeros, layers scaled away
    if args.calibrated:
        models.calibrate(model, [writing.pictures(4, size)])
    images = writing.random_images(2, size)
    wanted = writing.Wanted(model, model.subnets, images, True, {})
    together, alone, worst = writing.write(form, wanted, folder / "all.onnx")
    line = f"| {name} | {size} | {together / 1e6:.1f} | {together / alone:.3f} | {max(worst.values()):.1e} |"
    return line, latencies(form, wanted, name, folder, args.rounds) if name in args.latency else []


def latencies(form, wanted, name: str, folder: Path, rounds: int) -> list[str]:
    import torch

    from utils.evaluate.latency import Effort, take_turns

    image, run, calls = wanted.images[:1], form.runner(folder / "all.onnx", threads=1), {}
    for skip in wanted.subnets:
        file = folder / f"{wanted.model.name(skip)}.onnx"
        form.save(wanted._replace(subnets=[skip]), file)
        calls[skip, "one file"] = partial(run, image, skip)
        calls[skip, "alone"] = partial(form.runner(file, threads=1), image, skip)
    times = take_turns(calls, torch.device("cpu"), Effort(3, rounds, rounds))
    lines = [f"\n**{name}**, {rounds} rounds\n", "| sub-network | GMACs | in one file, ms | alone, ms | ratio |"]
    lines.append("|---|---|---|---|---|")
    for skip in wanted.subnets:
        mine, theirs = times[skip, "one file"], times[skip, "alone"]
        low, middle, high = statistics.quantiles([a / b for a, b in zip(mine, theirs, strict=True)], n=4)
        gmacs = wanted.model.cost(skip, image.shape[-1]).macs / 1e9
        found = f"{statistics.median(mine):.1f} | {statistics.median(theirs):.1f} | {middle:.2f} ({low:.2f}–{high:.2f})"
        lines.append(f"| {wanted.model.name(skip)} | {gmacs:.2f} | {found} |")
    return lines


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return f"{platform.machine()} CPU"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m deploy.latency", description="Measure exported ONNX files.")
    parser.add_argument("--model", nargs="+", default=["resnet50"], metavar="NAME", help="networks to export")
    parser.add_argument("--latency", nargs="*", default=["resnet50"], metavar="NAME", help="networks to time as well")
    parser.add_argument("--image-size", type=COUNT, default=224, metavar="N")
    parser.add_argument("--rounds", type=COUNT, default=21, metavar="N")
    parser.add_argument("--calibrated", action="store_true", help="with running statistics of every sub-network's own")
    parser.add_argument("--add", action="store_true", help="keep what is on the page already")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="the page to write")
    args = parser.parse_args(argv)
    return exit_code("deploy.latency", lambda: write(args))


if __name__ == "__main__":
    sys.exit(main())
