"""Several sub-networks in every step: all of a list, or by the sandwich rule the largest, the smallest and some drawn.

The largest learns from the labels. The others do too, or from its outputs (in-place distillation: same batch, same
weights, no labels).
"""

from argparse import BooleanOptionalAction, Namespace, _ArgumentGroup
from collections.abc import Hashable, Sequence
from typing import Any

from utils.flags.parsing import Needs, bounded
from utils.rng import derive
from utils.train.passes import LABELS, Outputs, Pass


def add_flags(group: _ArgumentGroup) -> None:
    add = group.add_argument
    count = "--method sandwich: sub-networks in each step, of which all but the largest and the smallest are drawn"
    add("--sandwich", type=bounded(int, 2), default=4, metavar="N", help=count)
    inplace = (
        "all sub-networks but the largest learn from its outputs instead of the labels "
        "(default: with --method sandwich, not with --method slimmable)"
    )
    add("--in-place-distillation", action=BooleanOptionalAction, help=inplace)


def needs(args: Namespace) -> Needs:
    either = args.method in ("slimmable", "sandwich")
    return (
        ("sandwich", args.method == "sandwich", "--method sandwich"),
        ("in_place_distillation", either, "--method slimmable or sandwich"),
    )


def soft_cross_entropy(student: Outputs, teacher: Outputs) -> Any:
    """Its gradient is that of the divergence, and it is linear in the teacher's probabilities."""
    import torch.nn.functional as F  # here, since --help needs no torch

    return F.cross_entropy(student.logits.float(), F.softmax(teacher.logits.float(), dim=1))


class Slimmable:
    """Every sub-network, from the largest to the smallest."""

    distance = staticmethod(soft_cross_entropy)

    def __init__(self, args: Namespace, model: Any) -> None:
        self.tested = {model.name(subnet): subnet for subnet in model.subnets}
        self.roles = tuple(self.tested)
        self.all = _passes(self.roles, model.subnets, args.in_place_distillation)

    def passes(self, epoch: int, step: int) -> list[Pass]:
        return self.all


class Sandwich:
    """The largest, the smallest, and others drawn anew each time."""

    few_shapes = False  # of convolutions: drawn widths are ever new
    distance = staticmethod(soft_cross_entropy)

    def __init__(self, args: Namespace, model: Any) -> None:
        self.seed, self.draw = args.seed, model.draw
        self.both = [model.subnets[0], model.subnets[-1]]
        self.drawn = [f"drawn{number}" for number in range(1, args.sandwich - 1)]
        self.roles = ("largest", "smallest", *self.drawn)
        self.tested = dict(zip(self.roles, self.both, strict=False))
        self.distils = args.in_place_distillation is not False

    def passes(self, epoch: int, step: int) -> list[Pass]:
        places = [derive(self.seed, epoch, step, number) / 2**32 for number in range(len(self.drawn))]
        return _passes(self.roles, [*self.both, *map(self.draw, places)], self.distils)


def _passes(roles: Sequence[str], subnets: Sequence[Hashable], distils: bool | None) -> list[Pass]:
    """The first learns from the labels, the others from its outputs if that is asked for."""
    targets = [LABELS] + [0 if distils else LABELS] * (len(subnets) - 1)
    parts = zip(roles, subnets, targets, strict=True)
    return [Pass(role, subnet, ((target, 1.0),)) for role, subnet, target in parts]
