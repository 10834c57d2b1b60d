"""The flags of testing, choosing a sub-network and predicting. Imports no torch, so that `--help` answers at once."""

import argparse


def evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the group "evaluation" to the command's parser."""
    group = parser.add_argument_group("evaluation")
    group.add_argument("--test-only", action="store_true", help="evaluate --weights (or --resume) and train nothing")
    group.add_argument(
        "--skip-cfg",
        nargs="+",
        metavar="CFG",
        help="sub-networks to run: one flag per stage (True False …, T F …), words (TTFF TTTT), super, base, or all "
        "(default: super)",
    )
    group.add_argument("--weights", metavar="FILE|NAME", help="weights: a file, or the name of a released network")
    group.add_argument("--weights-url", metavar="URL", help="fetch a released network here: its file or folder")
    group.add_argument("--weights-dir", metavar="DIR", help="take a released network's file from this folder")
    group.add_argument("--predict", metavar="PATH", help="print the likeliest classes of an image or of a folder")
    _choice_flags(group)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of images, 0 or more, not {text!r}")
    return int(text)


def _choice_flags(group: argparse._ArgumentGroup) -> None:
    """Flags of the table of sub-networks and of choosing one from it."""
    group.add_argument("--budget-gmacs", type=float, metavar="X", help="best sub-network of at most X GMACs per image")
    group.add_argument("--budget-latency", type=float, metavar="MS", help="best sub-network of at most MS milliseconds")
    group.add_argument("--budget-params", type=float, metavar="M", help="best sub-network of at most M million weights")
    group.add_argument("--from-table", metavar="FILE", help="choose from this subnets.json instead of measuring")
    group.add_argument(
        "--latency-batch",
        type=_count,
        default=1,
        metavar="N",
        help="images per call when latency is measured; 0 measures none (default: %(default)s)",
    )
    group.add_argument("--no-picture", action="store_true", help="do not draw subnets.png (it needs matplotlib)")
