"""Dynamic slimmable networks (Li et al., 2021): first a network of many widths, then the gate that chooses among them.

Both stages are as in the official code where a record of it can tell. Its gate learns by a softmax of a softmax that
noise is in, and by a count of operations that is wrong for depthwise convolutions; --gate-loss corrected has neither.
"""

import contextlib
from argparse import Namespace, _ArgumentGroup
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from methods.slimmable import soft_cross_entropy
from utils.errors import UserError
from utils.flags.parsing import NONNEGATIVE, Needs
from utils.rng import derive
from utils.train.passes import LABELS, Outputs, Pass

DRAWN = 2  # sub-networks a step


def add_flags(group: _ArgumentGroup) -> None:
    add = group.add_argument
    ways = (
        "what --method dsnet's narrower networks learn from: the moving average's largest network; the smallest also "
        "from two that are drawn; or the labels (default: largest)"
    )
    add("--bootstrap", choices=("largest", "ensemble", "off"), default="largest", help=ways)
    losses = "--method dsnet-gate: as in the official code, or without its slips (default: official)"
    add("--gate-loss", choices=("official", "corrected"), default="official", help=losses)
    squared = "--method dsnet-gate: weight of the square of the mean cost of an image in 1e9 operations"
    add("--gate-cost", type=NONNEGATIVE, default=0.5, metavar="W", help=squared)


def needs(args: Namespace) -> Needs:
    return (
        ("bootstrap", args.method == "dsnet", "--method dsnet"),
        ("gate_loss gate_cost", args.method == "dsnet-gate", "--method dsnet-gate"),
    )


class Slimmable:
    """The largest network learns from the labels; two drawn ones and the smallest from the average's largest."""

    distance = staticmethod(soft_cross_entropy)
    roles = ("largest", *(f"drawn{number}" for number in range(1, DRAWN + 1)), "smallest")

    def __init__(self, args: Namespace, model: Any) -> None:
        if args.bootstrap != "off" and not args.model_ema:
            raise UserError("--method dsnet learns from the moving average: give --model-ema, or --bootstrap off")
        self.seed, self.bootstrap = args.seed, args.bootstrap
        self.largest, *self.others, self.smallest = model.subnets
        self.tested = {"smallest": self.smallest, "largest": self.largest}
        if hasattr(model, "gate"):  # no pass reaches it: processes would look for its gradient in every step
            model.gate.requires_grad_(False)

    def passes(self, epoch: int, step: int) -> list[Pass]:
        taught = LABELS if self.bootstrap == "off" else self.teacher
        drawn = [self.others[derive(self.seed, epoch, step, number) % len(self.others)] for number in range(DRAWN)]
        subnets, targets = [self.largest, *drawn, self.smallest], [LABELS, *[taught] * (DRAWN + 1)]
        passes = [Pass(*each, ((target, 1.0),)) for *each, target in zip(self.roles, subnets, targets, strict=True)]
        if self.bootstrap == "ensemble":
            passes[-1] = Pass(self.roles[-1], self.smallest, self.several(epoch, step))
        return passes

    def several(self, epoch: int, step: int) -> tuple[tuple[Callable, float], ...]:
        """The average's largest and drawn others, which are not those that learn: the mean of their probabilities."""
        own = [derive(self.seed, epoch, step, DRAWN + number) % len(self.others) for number in range(DRAWN)]
        teachers = [self.teacher, *(partial(self.teacher, subnet=self.others[number]) for number in own)]
        return tuple((teacher, 1 / len(teachers)) for teacher in teachers)

    def teacher(self, images: Any, labels: Any, subnet: Any = None) -> Outputs:
        return Outputs(self.average(images, self.largest if subnet is None else subnet))


class Gate:
    """The gate alone learns: the labels by what it chose, and to take the smallest network where that is right."""

    few_shapes = False  # of convolutions: how many images go which way is ever new
    roles = ("gate",)

    def __init__(self, args: Namespace, model: Any) -> None:
        try:
            gate = model.parse("gate")
        except ValueError:
            raise UserError(f"--method dsnet-gate: --model {args.model} has no gate") from None
        if not (args.weights or args.init_from or args.resume):
            raise UserError("--method dsnet-gate trains the gate of a trained network: give --weights or --init-from")
        self.model, self.smallest = model, model.subnets[-1]
        self.tested = {"gate": gate, "smallest": self.smallest}
        self.distance = GateLoss(args.gate_loss == "official", args.gate_cost, args.label_smoothing)
        self.one = [Pass("gate", gate, ((LABELS, 1.0), (self.right, 1.0)))]
        model.requires_grad_(False)
        model.gate.requires_grad_(True)

    def passes(self, epoch: int, step: int) -> list[Pass]:
        return self.one

    def right(self, images: Any, labels: Any) -> Outputs:
        """Whether the smallest network is, about each image."""
        from utils.evaluate.accuracy import running  # here, since it needs torch

        with running(self.model, contextlib.nullcontext):
            found = self.model(images, self.smallest).argmax(dim=1)
        return Outputs(found == (labels if labels.ndim == 1 else labels.argmax(dim=1)))


@dataclass(frozen=True)
class GateLoss:
    """The first choice where the smallest network is right, else the last; and few operations.

    The features are what a network's gate gives: its logits, its probabilities as drawn, and the operations of each
    image in 1e9, right and as the official code counts them.
    """

    official: bool
    cost: float
    smoothing: float

    def features(self, given: Any) -> Any:
        return given

    def __call__(self, student: Outputs, teacher: Outputs) -> Any:
        import torch.nn.functional as F

        logits, drawn, operations, official_count = student.features
        target = (~teacher.logits).long() * (logits.shape[1] - 1)
        choice, spent = (drawn, official_count) if self.official else (logits, operations)
        return F.cross_entropy(choice, target, label_smoothing=self.smoothing) + self.cost * spent.mean() ** 2
