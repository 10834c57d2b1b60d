"""The contract of a network that holds many: what training, evaluation, export and everything else may ask of one.

A sub-network is a value that only the network understands, handed to every call. Whatever a network adapts (here its
depth), it says which sub-networks it has, runs one, names them, and gives one as an ordinary network.
"""

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Images = Tensor | Sequence[Tensor]  # a batch, or several views of it, each of another size


class Cost(NamedTuple):
    """Of one image: multiply-accumulates of convolutions and matrix products; and the parameters that are used."""

    macs: int
    parameters: int


class ManyNetworks(nn.Module):
    """Called as `model(images, subnet)`; without a sub-network the largest one runs.

    With `return_features=True` the call also gives a list of what a sub-network can be taught by beside its logits.
    All networks here also have running statistics of each sub-network's own, by `calibration.WithStatistics`.
    """

    @property
    def subnets(self) -> list[Any]:
        """From the largest to the smallest."""
        raise NotImplementedError

    def name(self, subnet: Any) -> str:
        """A word for a sub-network, as tables and the command line say it."""
        raise NotImplementedError

    def parse(self, word: str) -> Any:
        """The sub-network of that name. A ValueError says what is wrong with the word."""
        raise NotImplementedError

    def checked(self, subnet: Any) -> Any:
        """The sub-network that is meant, None being the largest, or a ValueError."""
        return self.subnets[0] if subnet is None else subnet

    def draw(self, place: float) -> Any:
        """The sub-network at a place in [0, 1), for those who draw one by chance: all are equally likely."""
        return self.subnets[int(place * len(self.subnets))]

    def ready(self, subnet: Any) -> bool:
        """Whether it can be evaluated as it is."""
        return True

    def view(self, subnet: Any = None) -> nn.Module:
        """A sub-network as an ordinary network that shares this one's weights."""
        raise NotImplementedError

    def size(self, subnet: Any = None) -> int | None:
        """The side of the images that a sub-network takes, None: any."""
        return getattr(self, "image_size", None)

    def images_for(self, images: Images, subnet: Any = None) -> Tensor:
        """Of several views of a batch the one of the sub-network's size; the first, if it takes any size."""
        if isinstance(images, Tensor):
            return images
        size = self.size(subnet)
        found = [view for view in images if size in (None, view.shape[-1])]
        if not found:
            sides = ", ".join(str(view.shape[-1]) for view in images)
            raise ValueError(f"{self.name(subnet)} takes images of {size}; there are views of {sides}")
        return found[0]

    def forward_all(self, x: Images, subnets: Sequence[Any] | None = None) -> dict[Hashable, Tensor]:
        """Logits of many sub-networks (None: all of them), of several views of the images each on that of its size."""
        wanted = self.subnets if subnets is None else subnets
        return {subnet: self(self.images_for(x, subnet), subnet) for subnet in wanted}

    def _plain(self, subnet: Any) -> nn.Module:
        """A view of ordinary layers alone, which may have weights of their own."""
        return self.view(subnet)

    def extract(self, subnet: Any = None) -> nn.Module:
        """A sub-network as an ordinary network with a copy of only the weights that it uses."""
        return copy.deepcopy(self._plain(subnet)).train(self.training)

    def cost(self, subnet: Any = None, image_size: int | None = None) -> Cost:
        """Of one square image (by default of the sub-network's own size, or 224)."""
        return cost(self._plain(subnet), image_size or self.size(subnet) or 224)

    def image_macs(self, x: Tensor, subnet: Any = None) -> Tensor | None:
        """Of each of these images the multiply-accumulates; None if all cost the same, which `cost` says."""
        return None


def ordinary(kind: type[ManyNetworks]) -> type[nn.Module]:
    """The class of ordinary networks before which a family was put."""
    lineage = kind.__mro__
    return lineage[lineage.index(ManyNetworks) + 1]


def in_float32(classify: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Features → logits, in float32 under autocast too: of a thousand classes in 16 bits, several are equal."""
    if not torch.is_autocast_enabled(x.device.type):
        return classify(x)
    with torch.autocast(x.device.type, enabled=False):
        return classify(x.float())


def cost(network: nn.Module, image_size: int) -> Cost:
    """The cost of an ordinary network. Nothing is computed: its tensors are taken as shapes alone."""
    meta = {name: torch.empty_like(p, device="meta", requires_grad=True) for name, p in network.named_parameters()}
    meta |= {name: torch.empty_like(b, device="meta") for name, b in network.named_buffers()}
    images = torch.empty(2, 3, image_size, image_size, device="meta", dtype=next(network.parameters()).dtype)
    # with gradients on, attention runs as matrix products that are counted, not as one fused operator that is not;
    # two images, since batch norm refuses one in training mode
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(network, meta, (images,))
    return Cost(macs=counter.get_total_flops() // 4, parameters=sum(p.numel() for p in network.parameters()))
