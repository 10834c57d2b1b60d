"""Which networks of timm become many networks in one, in a page: of each of its module files the smallest network.

    python -m tools.timm_table -o results/timm.md

Nothing is trained or measured in time: networks are made with random weights, and their stages found.
"""

import argparse
import itertools
import re
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import models
from deploy.command import exit_code
from utils.errors import UserError
from utils.files import whole_file

SMALL = ("zepto", "atto", "femto", "pico", "nano", "xxs", "xxtiny", "xtiny", "xs", "tiny", "lite", "mini", "small", "s")
TRIED = 4
HEAD = """# Depth on timm's networks

Written by `python -m tools.timm_table` with timm {timm}: of each of its module files the smallest network that
is accepted, else the smallest (of the {tried} whose names sound smallest; toys called test_ come last), none above
{most:g} million parameters. A stage of 3+2 blocks has three mandatory and two skippable ones. GMACs are those of an
image of so many pixels, with 1000 classes. A refusal is what `models.build("timm:NAME")` says.

Of {all} files {accepted} have a network that is accepted.

"""
COLUMNS = "| file | `--model` | pixels | blocks by stage | GMACs: super-net | base-net |\n|---|---|---|---|---|---|\n"
REFUSED = "\n| file | `--model` | refused, because |\n|---|---|---|\n"


def main(argv: Sequence[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tools.timm_table", description=__doc__, formatter_class=form)
    parser.add_argument("--most", type=float, default=30, metavar="M", help="million parameters (default: 30)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--files", nargs="+", metavar="NAME", help="only these of timm's files")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the page (default: it is printed)")
    args = parser.parse_args(argv)
    return exit_code("tools.timm_table", lambda: table(args))


def table(args: argparse.Namespace) -> str | None:
    """The page, if it was not written to a file."""
    try:
        import timm
    except ImportError:
        raise UserError("it needs timm: pip install timm") from None
    warnings.simplefilter("ignore")  # timm's, of names that it replaced
    rows: dict[bool, list[str]] = {True: [], False: []}
    files = args.files or timm.list_modules()
    with ProcessPoolExecutor(args.jobs) as pool:
        for accepted, row in pool.map(row_of, files, itertools.repeat(args.most)):
            rows[accepted].append(row)
            print(row, end="", file=sys.stderr, flush=True)
    counts = {"all": sum(map(len, rows.values())), "accepted": len(rows[True])}
    head = HEAD.format(timm=timm.__version__, most=args.most, tried=TRIED, **counts)
    page = head + COLUMNS + "".join(rows[True]) + REFUSED + "".join(rows[False])
    if args.output is None:
        return page
    with whole_file(args.output) as file:
        file.write(page.encode())
    return None


def smallest(file: str) -> list[tuple[int, str]]:
    """Networks of a file by their number of parameters."""
    import timm

    found = []
    for name in sorted(timm.list_models(module=file), key=sounds_like)[:TRIED]:
        try:
            with torch.device("meta"):
                network = timm.create_model(name)
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError):
            network = timm.create_model(name)  # some compute with what they make
        found.append((sum(parameter.numel() for parameter in network.parameters()), name))
    return sorted(found)


def sounds_like(name: str) -> tuple:
    """First what sounds small."""
    words = re.findall(r"[a-z]+|[0-9]+", name)
    sizes = [SMALL.index(word) for word in words[1:] if word in SMALL]
    numbers = [int(word) for word in words if word.isdigit()]
    return name.startswith("test_"), min(sizes, default=len(SMALL)), numbers[:1], len(name), name


def row_of(file: str, most: float) -> tuple[bool, str]:
    """Whether a network of the file is accepted, and the row of the smallest such one, or else of the smallest."""
    refused = []
    for parameters, name in smallest(file):
        reason = f"not tried: {parameters / 1e6:.0f} M parameters"
        if parameters <= most * 1e6:
            try:
                return True, f"| {file} | `timm:{name}` | {facts(name)} |\n"
            except Exception as error:  # the page shows whatever fails
                reason = " ".join(str(error).split()).removeprefix(f"timm:{name}: ").replace("|", "/")
                reason = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
        refused.append(f"| {file} | `timm:{name}` | {reason} |\n")
    return False, refused[0]


def facts(name: str) -> str:
    model = models.build(f"timm:{name}", num_classes=1000)
    pixels = getattr(model, "image_size", model.pretrained_cfg["input_size"][-1])
    blocks = " ".join(f"{len(stage) - len(skipped)}+{len(skipped)}" for stage, skipped in model.depth_stages)
    costs = " | ".join(f"{model.cost(subnet, pixels).macs / 1e9:.3g}" for subnet in (model.super_net, model.base_net))
    return f"{pixels} | {blocks} | {costs}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
