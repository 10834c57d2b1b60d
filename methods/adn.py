"""Adaptive depth: Algorithm 1 of the paper, its ablation, and one network trained alone."""

import itertools
from argparse import Namespace, _ArgumentGroup
from collections.abc import Hashable, Iterator
from typing import Any

from utils.errors import UserError
from utils.flags.evaluation import chosen
from utils.flags.parsing import FRACTION, NATURAL, POSITIVE
from utils.train.passes import LABELS, Pass


def add_flags(group: _ArgumentGroup) -> None:
    add = group.add_argument
    alpha = "weight of the super-net's loss, or of the labels beside --ema-teacher; the other losses share 1 - alpha"
    add("--subpath-alpha", type=FRACTION, default=0.5, help=alpha)
    add("--subpath-temp", type=POSITIVE, default=1.0, help="temperature of the distillation")
    topk = "distil over the super-net's K likeliest classes (of at most all); 0 = all, as in the paper"
    add("--subpath-topk", type=NATURAL, default=500, metavar="K", help=topk)
    add("--fpn", action="store_true", help="distil stage features too (a few %% of time, +0.2 points)")
    add("--no-distillation", action="store_true", help="ablation: both networks learn from the labels")
    middle = "train N more sub-networks in each step like the base-net, drawn anew each time (default: the paper's 0)"
    add("--middle", type=NATURAL, default=0, help=middle)


def needs(args: Namespace) -> tuple[tuple[str, bool, str], ...]:
    adn = args.method == "adn"
    distils = adn and not args.no_distillation
    itself, any_teacher = "self-distillation (--method adn and no --no-distillation)", distils or args.ema_teacher
    return (
        ("fpn", distils, itself),
        ("subpath_temp subpath_topk", any_teacher, f"{itself} or --ema-teacher"),
        ("subpath_alpha", adn or args.ema_teacher, "--method adn or --ema-teacher"),
        ("no_distillation middle", adn, "--method adn"),
    )


class AdaptiveDepth:
    """The super-net learns from the labels, the base-net from the super-net; in the ablation from the labels too.

    With --middle so do some sub-networks between the two, which share the base-net's weight with it.
    """

    def __init__(self, args: Namespace, model: Any) -> None:
        from utils.train.losses import Distillation, mean_over_space  # here, since it needs torch

        largest, *self.others, smallest = model.subnets
        self.seed, self.middle = args.seed, [f"middle{number}" for number in range(1, args.middle + 1)]
        self.roles = ("super", "base", *self.middle)
        self.tested = {"super": largest, "base": smallest}
        self.distance = Distillation(args.subpath_temp, args.subpath_topk, mean_over_space if args.fpn else None)
        teacher = LABELS if args.no_distillation else 0
        self.targets = ((teacher, (1 - args.subpath_alpha) / (1 + args.middle)),)
        self.both = [Pass("super", largest, ((LABELS, args.subpath_alpha),)), Pass("base", smallest, self.targets)]

    def passes(self, epoch: int, step: int) -> list[Pass]:
        drawn = zip(self.middle, self.drawn(epoch, step), strict=False)
        return self.both + [Pass(role, subnet, self.targets) for role, subnet in drawn]

    def drawn(self, epoch: int, step: int) -> Iterator[Hashable]:
        """The sub-networks between super-net and base-net in an order of chance, again and again."""
        from utils.rng import derive

        seed = derive(self.seed, epoch, step)
        order = sorted(range(len(self.others)), key=lambda number: derive(seed, number))
        return itertools.cycle([self.others[number] for number in order])


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
