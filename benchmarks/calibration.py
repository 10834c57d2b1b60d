"""How many batches calibration needs, and whether the images should look as in training or as in an evaluation.

    python -m benchmarks.calibration --weights runs/demo/checkpoint.pth --data-path digits     flags as of --test-only

Writes results/calibration.md, a section for each model and data set; a section that is there is replaced.
"""

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import methods
import models
import train_adn
from utils.data.loading import eval_loader, load_data
from utils.errors import UserError
from utils.evaluate.accuracy import evaluate
from utils.evaluate.calibration import calibrate, calibration_loader
from utils.files import whole_file
from utils.flags.arguments import parser
from utils.flags.data import fill_defaults

BATCHES = (5, 10, 20, 40, 80)
TITLE = """# How many batches calibration needs

Written by `python -m benchmarks.calibration`. Acc@1 (%) on the test images of the super-net, the base-net, the worst
sub-network and the mean of all, with statistics from so many batches of training images, which look as in the training
(augmented; so the command does it) or as in an evaluation (resized, the centre cropped)."""


def main(argv: Sequence[str]) -> int:
    try:
        path = measure(parser(methods).parse_args(["--test-only", "--calibrate", str(max(BATCHES)), *argv]))
    except (UserError, models.WeightsError) as error:
        print(f"benchmarks.calibration: error: {error}", file=sys.stderr)
        return 2
    print(f"written: {path}")
    return 0


def measure(args: argparse.Namespace) -> Path:
    saved = train_adn.saved_weights(args)
    fill_defaults(args, saved.settings)
    data = load_data(args)
    machine = train_adn.start(args)
    model = train_adn.build(args, len(data.classes), args.val_crop_size, saved)
    on_device = machine.place(model, args.channels_last)
    loader = eval_loader(data, args)

    def row(batches: int | str, images: str, seconds: float) -> str:
        found = evaluate(model, loader, model.subnets, on_device, machine.autocast, args.on_corrupt)
        top1 = [result.top1 for result in found.values()]
        accuracies = " | ".join(f"{value:.2f}" for value in (top1[0], top1[-1], min(top1), sum(top1) / len(top1)))
        print(line := f"| {batches} | {images} | {accuracies} | {seconds:.1f} |", flush=True)
        return line

    lines = [f"\n## {args.model} on {data.name}, batches of {args.batch_size}\n"]
    lines.append(
        "| batches | images as in | super-net | base-net | worst | mean | seconds |\n|---|---|---|---|---|---|---|"
    )
    lines.append(row(0, "–", 0))
    as_tested = {name: getattr(data.val, name) for name in ("read", "transform", "side")}
    for images, train in (("training", data.train), ("an evaluation", dataclasses.replace(data.train, **as_tested))):
        seen = data._replace(train=train)
        for args.calibrate in BATCHES:
            start = time.perf_counter()
            calibrate(model, calibration_loader(seen, args, workers=0), on_device, args.on_corrupt)
            lines.append(row(args.calibrate, images, time.perf_counter() - start))
    return write(lines, Path("results/calibration.md"))


def write(lines: list[str], path: Path) -> Path:
    """The page with this section in the place of one with its heading."""
    sections = re.split(r"\n(?=## )", path.read_text())[1:] if path.exists() else []
    kept = [section for section in sections if section.splitlines()[0] != lines[0].strip()]
    with whole_file(path) as file:
        file.write("\n".join([TITLE, *(f"\n{section.strip()}" for section in kept), *lines, ""]).encode())
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
