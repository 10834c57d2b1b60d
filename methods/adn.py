"""Adaptive depth: Algorithm 1 of the paper, its ablation, and one network trained alone."""

from argparse import Namespace, _ArgumentGroup
from typing import Any

from utils.errors import UserError
from utils.flags.evaluation import chosen
from utils.flags.parsing import FRACTION, NATURAL, POSITIVE
from utils.train.passes import LABELS, Pass


def add_flags(group: _ArgumentGroup) -> None:
    add = group.add_argument
    alpha = "weight of the super-net's loss; the base-net's is 1 - alpha"
    add("--subpath-alpha", type=FRACTION, default=0.5, help=alpha)
    add("--subpath-temp", type=POSITIVE, default=1.0, help="temperature of the distillation")
    topk = "distil over the super-net's K likeliest classes (of at most all); 0 = all, as in the paper"
    add("--subpath-topk", type=NATURAL, default=500, metavar="K", help=topk)
    add("--fpn", action="store_true", help="distil stage features too (a few %% of time, +0.2 points)")
    add("--no-distillation", action="store_true", help="ablation: both networks learn from the labels")


def needs(args: Namespace) -> tuple[tuple[str, bool, str], ...]:
    """Which of the flags have an effect, and when: (flags, whether they do, what they need in words)."""
    adn = args.method == "adn"
    distils = "self-distillation (--method adn and no --no-distillation)"
    return (
        ("fpn subpath_temp subpath_topk", adn and not args.no_distillation, distils),
        ("subpath_alpha no_distillation", adn, "--method adn"),
    )


class AdaptiveDepth:
    """The super-net learns from the labels, the base-net from the super-net; in the ablation from the labels too."""

    roles = ("super", "base")

    def __init__(self, args: Namespace, model: Any) -> None:
        from utils.train.losses import Distillation  # here, since it needs torch

        self.tested = {"super": model.subnets[0], "base": model.subnets[-1]}
        self.distance = Distillation(args.subpath_temp, args.subpath_topk, args.fpn)
        teacher = LABELS if args.no_distillation else 0
        self.both = [
            Pass("super", self.tested["super"], ((LABELS, args.subpath_alpha),)),
            Pass("base", self.tested["base"], ((teacher, 1 - args.subpath_alpha),)),
        ]

    def passes(self, epoch: int, step: int) -> list[Pass]:
        return self.both


class Individual:
    """One network, as without this method. What only others use is frozen: it neither travels nor decays."""

    distance = None

    def __init__(self, args: Namespace, model: Any) -> None:
        subnets = chosen(model, args.skip_cfg)
        if len(subnets) != 1:
            raise UserError(f"--method individual trains one network; --skip-cfg names {len(subnets)}")
        name = model.name(subnets[0])
        self.roles = (name,)
        self.tested = {name: subnets[0]}
        self.one = [Pass(name, subnets[0], ((LABELS, 1.0),))]
        model.requires_grad_(False)
        model.view(subnets[0]).requires_grad_(True)

    def passes(self, epoch: int, step: int) -> list[Pass]:
        return self.one
