"""The benchmark's flags. Imports no torch, so that --help and mistakes are answered at once."""

import argparse
from pathlib import Path

PARTS = ("step", "latency", "eval", "input")
MODELS = ("resnet50", "mobilenet_v2", "vit_b_16", "swin_t")

DESCRIPTION = """\
Measures training step, latency of every sub-network, evaluation of all of them, and input pipeline; each beside the
plain torchvision network and beside the official implementation's way of doing it, taking turns in one run.

    python -m tools.benchmark --json results/benchmark.json      everything, in under 8 minutes on one GPU
    python -m tools.benchmark --model resnet50 step latency      two parts of it
    python -m tools.benchmark --report results/benchmark.json    the same report again, from the file
    torchrun --nproc_per_node=2 -m tools.benchmark step          with the reduction of gradients
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--model", nargs="+", default=MODELS, metavar="NAME", help=f"(default: {' '.join(MODELS)})")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cuda or cpu")
    parser.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="our own steps in a 16-bit type; --no-amp leaves only what runs in fp32 (default: on)",
    )
    parser.add_argument("--batch-size", type=_count, help="of a training step (default: 256 on a GPU, 16 on a CPU)")
    parser.add_argument("--latency-batch", type=_count, default=64, help="beside a batch of 1 (default: 64)")
    parser.add_argument("--eval-batch", type=_count, help="(default: 256 on a GPU, 16 on a CPU)")
    parser.add_argument("--threads", type=_count, help="of a CPU; with 1, processor time counts (default: all)")
    parser.add_argument("--image-size", type=_count, default=224, metavar="PIXELS", help="(default: 224)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile as well, which takes a minute or two a network (default: on a GPU, while there is time)",
    )
    parser.add_argument("--rounds", type=_count, default=30, help="at most so many (default: 30)")
    parser.add_argument("--seconds", type=float, default=20.0, help="at most so long a comparison (default: 20)")
    parser.add_argument(
        "--budget-minutes",
        type=float,
        default=8.0,
        help="start nothing new after that; says what it left out (default: 8)",
    )
    parser.add_argument("--input-images", type=_count, default=64, help="JPEGs of a round of `input` (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample; adds to a file of this machine")
    parser.add_argument("--report", type=Path, metavar="FILE", help="measure nothing; print the report of such a file")
    return parser


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    own = parser()
    args = own.parse_args(argv)
    for part in args.parts:
        if part not in PARTS:
            own.error(f"unknown part {part!r} (known: {', '.join(PARTS)})")
    if args.report and not args.report.is_file():
        own.error(f"--report {args.report}: no such file")
    args.parts = args.parts or list(PARTS)
    return args


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, not {text}")
    return value
