"""One drawn sub-network a step: half the cost of adaptive depth's two passes, and all 2^N networks are trained."""

from argparse import Namespace, _ArgumentGroup
from collections.abc import Hashable
from typing import Any

from utils.errors import UserError
from utils.flags.parsing import FRACTION, Needs
from utils.rng import derive
from utils.train.passes import LABELS, Outputs, Pass


def add_flags(group: _ArgumentGroup) -> None:
    add = group.add_argument
    shares = "how often --method drawn takes the super-net and the base-net; the rest is all others' (default: 0.4 0.3)"
    add("--draw", type=FRACTION, nargs=2, default=[0.4, 0.3], metavar=("SUPER", "BASE"), help=shares)
    teacher = "--method drawn learns also from the moving average's super-net, with weight 1 - alpha"
    add("--ema-teacher", action="store_true", help=teacher)


def needs(args: Namespace) -> Needs:
    drawn = args.method == "drawn"
    return (
        ("draw", drawn, "--method drawn"),
        ("ema_teacher", drawn and args.model_ema, "--method drawn and --model-ema"),
    )


class Drawn:
    """The drawn sub-network learns from the labels, and from the moving average's super-net if asked to."""

    roles = ("drawn",)

    def __init__(self, args: Namespace, model: Any) -> None:
        from utils.train.losses import Distillation  # here, since it needs torch

        if sum(args.draw) > 1:
            raise UserError(f"--draw {args.draw[0]} {args.draw[1]}: together at most 1")
        self.seed, self.shares = args.seed, args.draw
        self.largest, *self.others, self.smallest = model.subnets
        self.tested = {"super": self.largest, "base": self.smallest}
        self.distance = Distillation(args.subpath_temp, args.subpath_topk)
        alpha = args.subpath_alpha
        self.targets = ((LABELS, alpha), (self.teacher, 1 - alpha)) if args.ema_teacher else ((LABELS, 1.0),)

    def teacher(self, images: Any, labels: Any) -> Outputs:
        return Outputs(self.average(images))

    def drawn(self, epoch: int, step: int) -> Hashable:
        place = derive(self.seed, epoch, step) / 2**32
        for share, subnet in zip(self.shares, (self.largest, self.smallest), strict=True):
            if place < share:
                return subnet
            place -= share
        return self.others[int(place / (1 - sum(self.shares)) * len(self.others))]

    def passes(self, epoch: int, step: int) -> list[Pass]:
        return [Pass("drawn", self.drawn(epoch, step), self.targets)]
