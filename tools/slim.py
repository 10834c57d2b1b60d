"""AutoSlim's search: lists of channels for budgets, by slimming a trained US-Net greedily.

    python -m tools.slim --weights us.pth --data-path DIR --gmacs 0.3 0.2 0.1 -o channels.json
    python train_adn.py --model autoslim_mobilenet_v2 --channels channels.json --method slimmable --data-path DIR …

From the widest network, the group of channels goes whose loss costs the fewest errors on a sample of the training
images, until the network is under each budget. With --train-images N as in the training, the sample is of images that
the network was not trained on. Every other flag is train_adn.py's. The file is written after each step, and the same
command goes on from it; on a GPU it surely ends with the same lists only with --deterministic.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import methods
import models
import train_adn
from deploy.command import exit_code
from models.slimmable import search
from models.slimmable.widths import Ranged
from utils.data.loading import Data, load_data, make_loader, refuse_other_classes
from utils.errors import UserError
from utils.files import write_json
from utils.flags import arguments
from utils.flags.data import fill_defaults
from utils.flags.parsing import COUNT, POSITIVE, Parser
from utils.rng import derive


def main(argv: Sequence[str]) -> int:
    parser = Parser("tools.slim", __doc__, lambda *_: None)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--gmacs", type=POSITIVE, nargs="+", required=True, metavar="X", help="budgets, GMACs of an image")
    add("--images", type=COUNT, default=512, metavar="N", help="in the sample (default: %(default)s)")
    groups = "of a layer's channels the N-th part goes at a time, rounded to 8 channels (default: %(default)s)"
    add("--groups", type=COUNT, default=10, metavar="N", help=groups)
    add("-o", "--output", type=Path, default=Path("channels.json"), metavar="FILE", help="(default: %(default)s)")
    own, others = parser.parse_known_args(argv)
    args = arguments.parser(methods).parse_args(["--test-only", "--calibrate", "1", *others])
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    return exit_code("tools.slim", lambda: slim(own, args), models.WeightsError)


def slim(own: argparse.Namespace, args: argparse.Namespace) -> None:
    saved = train_adn.saved_weights(args)
    if saved is None:
        raise UserError("--weights is missing: the trained network to slim")
    fill_defaults(args, saved.settings)
    trained_on, args.train_images = args.train_images, None
    data, size = load_data(args), args.val_crop_size
    refuse_other_classes(saved.source, saved.classes, data.classes, "give the --data-path of its training")
    machine = train_adn.start(args)
    model = train_adn.build(args, len(data.classes), size, saved)
    budgets = sorted(set(own.gmacs), reverse=True)
    refuse_budgets(model, args.model, budgets, size)
    about = {"model": args.model, "data": data.name, "image_size": size, "images": own.images, "groups": own.groups}
    about |= {"train_images": trained_on, "seed": args.seed, "batch_size": args.batch_size}
    about |= {"precision": machine.precision, "sha256": hashlib.sha256(Path(saved.source).read_bytes()).hexdigest()}
    steps = earlier(own.output, about)

    def keep() -> None:
        found = {"about": about, "weights": args.weights, "lists": lists(model, steps, budgets), "steps": steps}
        write_json(own.output, found)

    with machine.autocast():
        batches = list(sample(data, args, own.images, trained_on, machine.place(model, args.channels_last)))
        while not steps or steps[-1]["gmacs"] > budgets[-1]:
            row = model.parse(steps[-1]["channels"]) if steps else model.row(model.subnets[0])
            errors, loss, row = search.next_row(model, row, own.groups, batches)
            step = {"gmacs": model.cost(row, size).macs / 1e9, "top1": 100 * (1 - errors / own.images), "loss": loss}
            steps.append({**step, "channels": model.name(row)})
            keep()
            logging.info("%.4f GMACs: top-1 %.2f %%, loss %.4f", *step.values())
    keep()  # also where a finished search is asked for other budgets
    for one in lists(model, steps, budgets):
        print(f"at most {one['budget']:g} GMACs: {one['gmacs']:.4f}, top-1 {one['top1']:.2f} %")


def refuse_budgets(model: models.ManyNetworks, name: str, budgets: Sequence[float], size: int) -> None:
    if not isinstance(model, Ranged):
        raise UserError(f"--model {name}: only a network of a range of widths (us_…) can be slimmed")
    most, least = (model.cost(model.subnets[end], size).macs / 1e9 for end in (0, -1))
    for budget in budgets:
        if not least <= budget < most:
            raise UserError(f"--gmacs {budget:g}: from {least:.4f} to less than {most:.4f} are possible")


def earlier(path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a search that was stopped."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_bytes())
        theirs, steps = content["about"], content["steps"]
        other = sorted(name for name in about if about[name] != theirs[name])
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{path}: no file of a search; move it or say another -o") from None
    if other:
        raise UserError(f"{path}: is of a search with other {', '.join(other)}; move it or say another -o")
    return steps


def sample(
    data: Data, args: argparse.Namespace, count: int, trained_on: int | None, on_device: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training images and their classes, seen as in an evaluation, in batches of about the same size."""
    there = np.arange(len(data.train))
    if trained_on is not None:  # so many were taken evenly from the whole
        there = np.setdiff1d(there, np.arange(trained_on) * len(there) // trained_on)
    if count > len(there):
        raise UserError(f"--images {count}: there are only {len(there)}")
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(derive(args.seed, count)))
    batches = torch.from_numpy(there)[order[:count]].chunk(math.ceil(count / args.batch_size))
    as_tested = {name: getattr(data.val, name) for name in ("read", "transform", "side")} | {"substitute": False}
    images = dataclasses.replace(data.train, **as_tested)
    for batch in on_device(make_loader(images, args, [part.tolist() for part in batches], args.workers)):
        if batch.corrupt:
            raise UserError(f"cannot decode {batch.corrupt[0]}: mend or remove it")
        yield batch.images, batch.targets


def lists(model: Ranged, steps: Sequence[dict[str, Any]], budgets: Sequence[float]) -> list[dict[str, Any]]:
    """For each budget that has been reached, the first list under it."""
    reached = [budget for budget in budgets if steps[-1]["gmacs"] <= budget]
    firsts = [next(step for step in steps if step["gmacs"] <= budget) for budget in reached]
    return [
        {"budget": budget, **step, "channels": list(model.parse(step["channels"]))}
        for budget, step in zip(reached, firsts, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
