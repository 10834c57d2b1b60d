"""Algorithm 1 for detectors: the super-net learns from the boxes, the base-net from the super-net's feature pyramid.

Both have the same heads, which see the pyramid alone: where the base-net's is the super-net's, its detections are too.
So there is no further distance of outputs. Unlike the paper's, this base-net learns from the boxes as well. What two
epochs from random weights on benchmarks/scenes.py came to, in box AP of super-net and base-net, one seed each: by
features alone (`--base-labels 0`, the paper's) 59 and 54, by both in equal parts 64 and 66, by boxes alone 68 and 69.
"""

from argparse import Namespace, _ArgumentGroup
from typing import Any

from methods.adn import Individual
from utils.flags.parsing import FRACTION, POSITIVE, Needs
from utils.train.passes import LABELS, Pass


def add_flags(group: _ArgumentGroup) -> None:
    add = group.add_argument
    alone = "individual: the one network of --skip-cfg"
    add("--method", choices=tuple(METHODS), default="adn", help=f"adn: super-net and base-net; {alone}")
    alpha = "weight of the super-net's loss, the base-net's has the rest"
    add("--subpath-alpha", type=FRACTION, default=0.5, help=alpha)
    add("--subpath-temp", type=POSITIVE, default=1.0, help="temperature of the features' distillation")
    labels = "share of the boxes in the base-net's loss, the features' distance has the rest (0: as in the paper)"
    add("--base-labels", type=FRACTION, default=0.5, metavar="P", help=labels)


def needs(args: Namespace) -> Needs:
    return (("subpath_alpha subpath_temp base_labels", args.method == "adn", "--method adn"),)


class AdaptiveDepth:
    """Two passes: the super-net's, and the base-net's with its share of labels."""

    def __init__(self, args: Namespace, model: Any) -> None:
        from utils.train.losses import PyramidDistance  # here, since it needs torch

        largest, smallest = model.subnets[0], model.subnets[-1]
        self.roles = ("super", "base")
        self.tested = {"super": largest, "base": smallest}
        self.distance = PyramidDistance(args.subpath_temp)
        alpha, share = args.subpath_alpha, args.base_labels
        targets = ((0, (1 - alpha) * (1 - share)), (LABELS, (1 - alpha) * share))
        of_base = tuple((target, weight) for target, weight in targets if weight)
        self.both = [Pass("super", largest, ((LABELS, alpha),)), Pass("base", smallest, of_base)]

    def passes(self, epoch: int, step: int) -> list[Pass]:
        return self.both


METHODS = {"adn": AdaptiveDepth, "individual": Individual}
