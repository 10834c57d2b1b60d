"""Scale-adaptive networks: every resolution in every step, on the labels and, if asked for, on all larger ones."""

from argparse import Namespace, _ArgumentGroup
from typing import Any

from utils.errors import UserError
from utils.flags.parsing import Needs
from utils.train.passes import LABELS, Pass


def add_flags(group: _ArgumentGroup) -> None:
    larger = "--method san: every resolution learns from all larger ones too (the official --kd)"
    group.add_argument("--larger-teach", action="store_true", help=larger)


def needs(args: Namespace) -> Needs:
    return (("larger_teach", args.method == "san", "--method san"),)


class ScaleAdaptive:
    """One pass for each trained resolution, the largest first; all weights are 1, as in the official code."""

    def __init__(self, args: Namespace, model: Any) -> None:
        from utils.train.losses import Distillation  # here, since it needs torch

        if None in map(model.size, model.subnets) or len(set(map(model.size, model.subnets))) < 2:
            raise UserError("--method san trains a network of several resolutions (--model meta_… with --sizes)")
        self.tested = {model.name(subnet): subnet for subnet in model.subnets}
        self.roles = tuple(self.tested)
        self.distance = Distillation(topk=0)
        self.all = []
        for number, (role, subnet) in enumerate(self.tested.items()):
            teachers = [(larger, 1.0) for larger in range(number)] if args.larger_teach else []
            self.all.append(Pass(role, subnet, ((LABELS, 1.0), *teachers)))

    def passes(self, epoch: int, step: int) -> list[Pass]:
        return self.all
