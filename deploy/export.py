"""Write a trained network for another runtime: all its depths in one file, or one of them by itself.

    python -m deploy.export --weights best.pth --format onnx -o network.onnx                     all depths
    python -m deploy.export --weights best.pth --format executorch --skip-cfg FFFF TTTT -o network.pte
    python -m deploy.export --weights best.pth --format torch --skip-cfg TTFF -o small.pt2       one, by itself

The file is run in its runtime before it gets its name: every sub-network has to give torch's logits.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from deploy.command import exit_code
from utils.errors import UserError
from utils.flags.parsing import COUNT, Parser, one_of

FORMATS = ("onnx", "executorch", "torch")


def batch(text: str) -> int | str:
    """The type of --batch."""
    return text if text == "dynamic" else COUNT(text)


def parser() -> Parser:
    parser = Parser("python -m deploy.export", "Write a trained network for another runtime.", lambda *_: None)
    parser.set_defaults(from_run=None)
    add = parser.add_argument
    add("--model", metavar="NAME", help="the network (default: what the weights say)")
    add("--weights", metavar="FILE|NAME", required=True, help="weights: a file, or the name of a released network")
    add("--model-ema", action="store_true", help="take the averaged weights of a checkpoint")
    add("--stem", choices=("imagenet", "small"), help="as in training (default: what the weights say)")
    add("--patch-size", type=COUNT, help="as in training (default: what the weights say)")
    add("--window-size", type=COUNT, help="as in training (default: what the weights say)")
    add("--format", type=one_of(FORMATS), required=True, metavar="NAME", help=f"one of {', '.join(FORMATS)}")
    words = "sub-networks: words (TTFF TTTT), super, base, or all. One alone is taken out of the network; of several, "
    words += "executorch keeps only these, the others all depths, and list and check these"
    add("--skip-cfg", nargs="+", metavar="CFG", default=["all"], help=f"{words} (default: all)")
    size = "images of a call: a number or `dynamic` (default: dynamic; executorch, which needs a number, 1)"
    add("--batch", type=batch, metavar="N", help=size)
    add("--image-size", type=COUNT, help="of the central crop (default: what the weights say, or 224)")
    add("--table", metavar="FILE", help="keep the accuracies of this subnets.json in the file")
    add("-o", "--output", type=Path, metavar="FILE", required=True, help="the file to write")
    return parser


def load_format(name: str) -> ModuleType:
    """What writes and runs a format, if what it needs is installed."""
    try:
        return importlib.import_module(f"deploy.to_{name}")
    except ImportError as error:
        way = f"pip install -e '.[{name}]'" if name != "torch" else "install PyTorch as requirements.txt says"
        why = " ".join(str(error).split())  # in one line
        raise UserError(f"--format {name} cannot be written here ({why}): {way}") from None


def export(args: argparse.Namespace) -> str:
    """Write the file; what to say about it."""
    if args.format == "executorch" and args.batch == "dynamic":
        raise UserError("--batch dynamic: a file for ExecuTorch is of one batch size, give a number")
    form = load_format(args.format)
    from deploy import writing
    from models import WeightsError  # brings torch, which takes seconds

    began = time.monotonic()
    try:
        wanted = writing.prepare(args)
        size, alone, worst = writing.write(form, wanted, args.output)
    except WeightsError as error:
        raise UserError(str(error).splitlines()[0]) from None
    lines = [
        f"  {wanted.model.name(skip)}  largest difference / largest logit {found:.1e}" for skip, found in worst.items()
    ]
    ratio = f", {size / alone:.3f} times that of the super-net alone" if alone else ""
    took = f"{time.monotonic() - began:.0f} s"
    return "\n".join([f"written: {args.output}, {size / 1e6:.2f} MB{ratio}, in {took}; run in its runtime:", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("deploy.export", lambda: export(args))


if __name__ == "__main__":
    sys.exit(main())
