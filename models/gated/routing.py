"""The slimmable network with its gate: which sub-networks there are, and the one that is another for each image."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..subnet import Cost
from ..views import Views
from .mobilenet import LARGEST, ROUTES, SMALLEST, SlimmableMobileNet

GATE = "gate"
TOGETHER = 8  # images in the trunk at once on a CPU: with more than its caches hold, memory takes half of the time


class Routed(nn.Module):
    """Each image through the network that the gate chooses for it. `routes` are these, from the smallest.

    In evaluation the gate takes the likeliest, and images are run together with those of the same choice. In training
    it draws, and its choice has a gradient; batch norms are as in evaluation, for only the gate is to learn.
    """

    def __init__(self, gate: nn.Module, routes: Iterable[SlimmableMobileNet], training: bool) -> None:
        super().__init__()
        self.gate, self.routes, self.training = gate, nn.ModuleList(routes), training
        if training:
            self.routes.eval()

    def train(self, mode: bool = True) -> "Routed":
        self.training = mode
        return self

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Features, in training: the gate's logits, its probabilities as drawn, and each image's operations in 1e9.

        The latter twice: right, and as the official code counts them.
        """
        size = x.shape[-1]
        x, logits = self._decide(x)
        if not self.training:
            found = self._grouped(x, logits.argmax(dim=1))
            return (found, []) if return_features else found
        soft = (logits - torch.empty_like(logits).exponential_().log()).softmax(dim=1)  # with Gumbel noise
        hard = F.one_hot(soft.argmax(dim=1), len(self.routes)).to(soft)
        gates = hard - soft.detach() + soft
        found = self._masked(x, gates)
        if not return_features:
            return found
        kinds = [{"pools": True}, {"pools": True, "groups_of": self.routes[0]}]
        # one copy in page-locked memory, which nobody waits for
        costs = torch.tensor([self.operations(size, **kind) for kind in kinds], pin_memory=gates.is_cuda)
        costs = costs.to(gates, non_blocking=True)
        return found, [logits, soft, *((gates * cost).sum(dim=1) / 1e9 for cost in costs)]

    def operations(self, size: int, **kind: Any) -> list[float]:
        """Of each route, with the gate."""
        return [route.operations(size, **kind) + self.gate[0].weight.numel() for route in self.routes]

    def choices(self, x: Tensor) -> Tensor:
        """The number of each image's route."""
        return self._decide(x)[1].argmax(dim=1)

    def _decide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = x.split(TOGETHER) if x.device.type == "cpu" else [x]
        x, squeezed = map(torch.cat, zip(*map(self.routes[0].trunk, parts), strict=True))
        return x, self.gate(squeezed).flatten(1).float()

    def _grouped(self, x: Tensor, choices: Tensor) -> Tensor:
        order = choices.argsort()
        groups = x[order].split(choices.bincount(minlength=len(self.routes)).tolist())
        parts = [route.rest(group) for route, group in zip(self.routes, groups, strict=True) if len(group)]
        return torch.cat(parts)[order.argsort()]

    def _masked(self, x: Tensor, gates: Tensor) -> Tensor:
        """The widest route, with each image's channels beyond its own gated away: so the choice has a gradient."""
        for number, blocks in enumerate(zip(*(route.chain(route.gated) for route in self.routes), strict=True)):
            wide = blocks[-1]
            if number:  # else it is in the trunk
                x, present = _mixed_norm([block.bn1 for block in blocks], wide.conv_dw(x), gates)
                x = F.silu(x)
                x = x * (wide.gate.conv_expand(wide.gate.squeeze(x)) * present).sigmoid()
            x = F.silu(_mixed_norm([block.bn2 for block in blocks], wide.conv_pw(x), gates)[0])
        return self.routes[-1].classifier(x.mean(dim=(2, 3)))


def _mixed_norm(norms: Sequence[nn.Module], x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Each image normalised by the statistics of its choice, where this has no channel 0; and 1 where it has one."""
    *_, wide = norms
    rows = [torch.stack([torch.ones_like(norm.running_mean), norm.running_mean, norm.running_var]) for norm in norms]
    table = torch.stack([F.pad(row, (0, wide.num_features - row.shape[1])) for row in rows])
    mixed = (gates[:, :, None, None] * table).sum(dim=1)  # no matrix product: autocast would round it
    present, mean, var = mixed[..., None, None].unbind(dim=1)
    weight, bias = (part[: wide.num_features, None, None] for part in (wide.weight, wide.bias))
    return ((x * present - mean) * (var + wide.eps).rsqrt() * weight + bias) * present, present


class DynamicSlimmable(Views, SlimmableMobileNet):
    """A sub-network is its name: `largest`, `uniform_13` … `uniform_1`, `smallest` (`uniform_0`), or `gate`.

    `gate` is none of `subnets`, since before it has learned its choice means nothing.
    """

    settings = ("stem",)

    @property
    def subnets(self) -> list[str]:
        count = len(self.classifier.channels)
        return [LARGEST, *(f"uniform_{number}" for number in reversed(range(1, count))), SMALLEST]

    @property
    def routes(self) -> list[str]:
        return self.subnets[: -ROUTES - 1 : -1]

    @property
    def gate(self) -> nn.Module:
        """The module that chooses; the second part of the training is of it alone."""
        return self.blocks[self.gated].first_block.gate.gate

    def checked(self, subnet: str | None) -> str:
        known = {None: LARGEST, "uniform_0": SMALLEST, GATE: GATE, **{name: name for name in self.subnets}}
        if subnet not in known:
            there = f"{LARGEST}, {self.subnets[1]} … uniform_0 ({SMALLEST}), {GATE}"
            raise ValueError(f"{subnet!r} is no sub-network: there are {there}")
        return known[subnet]

    name = parse = checked

    def forward(self, x: Tensor, subnet: str | None = None, return_features: bool = False) -> Any:
        if self.checked(subnet) != GATE:
            return super().forward(x, subnet, return_features)
        return self._routed()(x, return_features)

    def view(self, subnet: str | None = None) -> nn.Module:
        return self._routed(super().view) if subnet == GATE else super().view(subnet)

    def _plain(self, subnet: str | None) -> nn.Module:
        return self.view(GATE) if subnet == GATE else super()._plain(subnet)  # the routes go on sharing their weights

    def _routed(self, view: Callable[[str], nn.Module] | None = None) -> Routed:
        view = view or (lambda route: self._view(route).network)
        return Routed(self.gate, map(view, self.routes), self.training)

    def image_macs(self, x: Tensor, subnet: str | None = None) -> Tensor | None:
        if subnet != GATE:
            return None
        routed = self._routed()
        return torch.tensor(routed.operations(x.shape[-1]), dtype=torch.float64, device=x.device)[routed.choices(x)]

    def cost(self, subnet: str | None = None, image_size: int | None = None) -> Cost:
        """Of the gate the most that it may choose: what it does choose depends on the image (`image_macs`)."""
        if subnet != GATE:
            return super().cost(subnet, image_size)
        return Cost(*(part + self.gate[0].weight.numel() for part in super().cost(self.routes[-1], image_size)))

    def _run_by(self, subnets: Sequence[str]) -> Sequence[str]:
        """The gate's routes together, since the trunk of one runs for all."""
        wanted = dict.fromkeys(subnets)
        if wanted.keys() & {GATE, *self.routes}:
            wanted.pop(GATE, None)
            wanted |= dict.fromkeys(self.routes)
        return list(wanted)
