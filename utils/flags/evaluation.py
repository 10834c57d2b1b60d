"""The flags of testing, choosing a sub-network and predicting. Imports no torch, so that `--help` answers at once."""

import argparse
from collections.abc import Hashable, Sequence
from typing import Any

from utils.errors import UserError
from utils.flags.parsing import NATURAL, POSITIVE

LETTERS = {"True": "T", "T": "T", "False": "F", "F": "F"}


def evaluation_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("evaluation").add_argument
    add("--test-only", action="store_true", help="evaluate --weights (or --resume) and train nothing")
    spellings = "one flag per stage (True False …, T F …), words (TTFF TTTT; widths: 0.25 0.5), super, base, or all"
    add("--skip-cfg", "--widths", nargs="+", metavar="CFG", help=f"sub-networks to run: {spellings} (default: super)")
    add("--weights", metavar="FILE|NAME", help="weights: a file, or the name of a released network")
    add("--weights-url", metavar="URL", help="fetch a released network here: its file or folder")
    add("--weights-dir", metavar="DIR", help="take a released network's file from this folder")
    add("--predict", metavar="PATH", help="print the likeliest classes of an image or of a folder")
    add("--budget-gmacs", type=POSITIVE, metavar="X", help="best sub-network of at most X GMACs per image")
    add("--budget-latency", type=POSITIVE, metavar="MS", help="best sub-network of at most MS milliseconds")
    add("--budget-params", type=POSITIVE, metavar="M", help="best sub-network of at most M million weights")
    add("--from-table", metavar="FILE", help="choose from this subnets.json instead of measuring")
    latency = "images per call when latency is measured; 0 measures none"
    add("--latency-batch", type=NATURAL, default=1, help=latency)
    own = (
        "estimate batch-norm statistics of each sub-network's own from N batches of training images, which look as in "
        "the training: at its end (default: 40) or before a test (default: use those of the file, if it has some); "
        "0: use those of the training"
    )
    add("--calibrate", type=NATURAL, help=own)
    add("--weights-out", metavar="FILE", help="write the weights that are tested, with their statistics")
    kept = "write predictions.npz (logits of every image), per_class.csv and a picture of confusions"
    add("--save-predictions", action="store_true", help=kept)
    beside = "show the points of these subnets.json too, hollow, by the names of their folders"
    add("--compare", nargs="+", metavar="FILE", help=beside)
    add("--no-picture", action="store_true", help="draw no pictures (they need matplotlib)")


def chosen(model: Any, words: Sequence[str] | None) -> list[Hashable]:
    """The sub-networks that the words of --skip-cfg name, each once; the largest where nothing is said.

    `all` are those of `subnets`; a network may know others by name, which can stand beside.
    """
    if not words:
        return [model.subnets[0]]
    if all(word in LETTERS for word in words):  # one word per stage: True True False, or T T F, is the one word TTF
        words = ["".join(LETTERS[word] for word in words)]
    try:
        if words[0] == "all":
            beside = list(map(model.parse, words[1:]))
            if not any(subnet in model.subnets for subnet in beside):
                return list(dict.fromkeys([*model.subnets, *beside]))
        return list(dict.fromkeys(model.parse(word) for word in words))
    except ValueError as error:
        raise UserError(f"--skip-cfg: {error}") from None
