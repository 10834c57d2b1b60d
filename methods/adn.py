"""Adaptive depth: Algorithm 1 of the paper, its ablation, and one network trained alone."""

import itertools
from argparse import Namespace, _ArgumentGroup
from collections.abc import Hashable, Iterator
from typing import Any

from utils.errors import UserError
from utils.flags.evaluation import chosen
from utils.flags.parsing import COUNT, FRACTION, NATURAL, POSITIVE, Needs
from utils.rng import derive
from utils.train.passes import LABELS, Outputs, Pass


def add_flags(group: _ArgumentGroup) -> None:
    add = group.add_argument
    alpha = "weight of the super-net's loss, or of the labels beside --ema-teacher; the other losses share 1 - alpha"
    add("--subpath-alpha", type=FRACTION, default=0.5, help=alpha)
    add("--subpath-temp", type=POSITIVE, help="temperature of the distillation (default: 1; with --teacher 2)")
    topk = "distil over the super-net's K likeliest classes (of at most all); 0 = all, as in the paper"
    add("--subpath-topk", type=NATURAL, default=500, metavar="K", help=topk)
    add("--fpn", action="store_true", help="distil stage features too (a few %% of time, +0.2 points)")
    add("--no-distillation", action="store_true", help="ablation: both networks learn from the labels")
    labels = "the labels' share of the base-net's loss; self-distillation has the rest (default: the paper's 0)"
    add("--base-labels", type=FRACTION, default=0.0, metavar="W", help=labels)
    middle = "train N more sub-networks in each step like the base-net, drawn anew each time (default: the paper's 0)"
    add("--middle", type=NATURAL, default=0, help=middle)
    outside = "a frozen teacher of the super-net: a file, a name such as resnet101 or timm:NAME, a released network"
    add("--teacher", metavar="FILE|NAME", help=outside)
    add("--teacher-subnet", metavar="CFG", help="of a teacher that holds many networks (default: the largest)")
    add("--teacher-size", type=COUNT, metavar="PIXELS", help="resize its images (default: it sees those of training)")
    share = "its share of the super-net's loss; the labels have the rest (default: 0.9)"
    add("--teacher-weight", type=FRACTION, default=0.9, metavar="W", help=share)
    add("--teacher-for-all", action="store_true", help="the base-net learns from it too, not from the super-net")


def needs(args: Namespace) -> Needs:
    adn = args.method == "adn"
    distils = adn and not args.no_distillation
    itself = "self-distillation (--method adn and no --no-distillation)"
    return (
        ("base_labels", distils, itself),
        ("fpn", distils and not args.teacher, f"{itself}, and with --teacher, which has no features to learn from"),
        ("subpath_temp subpath_topk", distils or args.ema_teacher or args.teacher, f"{itself} or another teacher"),
        ("subpath_alpha", adn or args.ema_teacher, "--method adn or --ema-teacher"),
        ("no_distillation middle teacher", adn, "--method adn"),
        ("teacher_subnet teacher_size teacher_weight", args.teacher, "--teacher"),
        ("teacher_for_all", args.teacher and distils, f"--teacher and {itself}"),
    )


def defaults(args: Namespace) -> dict[str, object]:
    """Of flags that depend on others."""
    return {"subpath_temp": 2.0 if args.teacher else 1.0}


class AdaptiveDepth:
    """The super-net learns from the labels, the base-net from it; in the ablation from the labels instead.

    With --middle so do some sub-networks between the two, which share the base-net's weight with it. With --teacher the
    super-net learns from that, and from the labels with what is left of its weight.
    """

    outside: Any = None  # the command sets it: a frozen teacher, images → logits

    def __init__(self, args: Namespace, model: Any) -> None:
        from utils.train.losses import Distillation, mean_over_space  # here, since it needs torch

        largest, *self.others, smallest = model.subnets
        self.seed, self.middle = args.seed, [f"middle{number}" for number in range(1, args.middle + 1)]
        self.roles = ("super", "base", *self.middle)
        self.tested = {"super": largest, "base": smallest}
        self.distance = Distillation(args.subpath_temp, args.subpath_topk, mean_over_space if args.fpn else None)
        labels = 1.0 if args.no_distillation else args.base_labels
        of_base = (LABELS, labels), (self.taught if args.teacher_for_all else 0, 1 - labels)
        weight = (1 - args.subpath_alpha) / (1 + args.middle)
        self.targets = tuple((target, weight * share) for target, share in of_base if share)
        alpha, share = args.subpath_alpha, args.teacher_weight
        of_super = ((LABELS, alpha),)
        if args.teacher:
            of_super = (self.taught, alpha * share), (LABELS, alpha * (1 - share))
        self.both = [Pass("super", largest, of_super), Pass("base", smallest, self.targets)]

    def taught(self, images: Any, labels: Any) -> Outputs:
        return Outputs(self.outside(images))

    def passes(self, epoch: int, step: int) -> list[Pass]:
        drawn = zip(self.middle, self.drawn(epoch, step), strict=False)
        return self.both + [Pass(role, subnet, self.targets) for role, subnet in drawn]

    def drawn(self, epoch: int, step: int) -> Iterator[Hashable]:
        """The sub-networks between super-net and base-net in an order of chance, again and again."""
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
        trained = [parameter for parameter in model.view(subnets[0]).parameters() if parameter.requires_grad]
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)

    def passes(self, epoch: int, step: int) -> list[Pass]:
        return self.one
