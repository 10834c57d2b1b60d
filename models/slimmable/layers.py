"""Layers with a number of channels for each sub-network, and a residual block of them.

What runs in a sub-network are the leading channels of one weight, and batch norms of one of two kinds: one for each
sub-network, or one weight and bias for all with running statistics for each width of a list.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..leading import LeadingBatchNorm2d, LeadingConv2d, LeadingLinear
from .channels import Channels


class Conv(LeadingConv2d):
    def __init__(
        self,
        inputs: Channels,
        outputs: Channels,
        subnets: Sequence[Any],
        kernel: int,
        stride: int,
        depthwise: bool,
    ) -> None:
        most_in, most_out = max(map(inputs, subnets)), max(map(outputs, subnets))
        groups = most_in if depthwise else 1
        super().__init__(most_in, most_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.inputs, self.outputs = inputs, outputs
        nn.init.normal_(self.weight, std=(2 / (kernel * kernel * most_out)) ** 0.5)

    def at(self, subnet: Any) -> nn.Module:
        return self.leading(self.outputs(subnet), self.inputs(subnet))


class Linear(LeadingLinear):
    def __init__(self, inputs: Channels, outputs: int, subnets: Sequence[Any]) -> None:
        super().__init__(max(map(inputs, subnets)), outputs)
        self.inputs = inputs
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def at(self, subnet: Any) -> nn.Module:
        return self.leading(self.inputs(subnet))


class SwitchableNorm(nn.Module):
    """A batch norm for each sub-network."""

    def __init__(self, channels: Channels, subnets: Sequence[Any]) -> None:
        super().__init__()
        self.number = {subnet: number for number, subnet in enumerate(subnets)}
        self.bn = nn.ModuleList(nn.BatchNorm2d(channels(subnet)) for subnet in subnets)

    def at(self, subnet: Any) -> nn.Module:
        return self.bn[self.number[subnet]]


class SharedNorm(_NormBase):
    """One weight and bias, of which a width uses the first; each width of a list has running statistics."""

    def __init__(self, channels: Channels, widths: Sequence[float]) -> None:
        super().__init__(max(map(channels, widths)), track_running_stats=False)
        self.channels, self.number = channels, {width: number for number, width in enumerate(widths)}
        self.bn = nn.ModuleList(nn.BatchNorm2d(channels(width), affine=False) for width in widths)

    def at(self, width: float) -> nn.Module:
        buffers = self.bn[self.number[width]]._buffers if width in self.number else None
        return LeadingBatchNorm2d(self.channels(width), self.weight, self.bias, buffers)


class Layers(NamedTuple):
    """Makes the layers of one network."""

    subnets: Sequence[Any]  # from the smallest to the largest, the order of the norms
    norm: type[SwitchableNorm] | type[SharedNorm]
    shaped: Sequence[Any]  # others that say which tensors are alike; if there are none, `subnets` do

    def unit(
        self,
        inputs: Channels,
        outputs: Channels,
        kernel: int = 1,
        stride: int = 1,
        activation: nn.Module | None = None,
        depthwise: bool = False,
    ) -> list[nn.Module]:
        """Convolution, norm and, unless it is linear, activation."""
        conv = Conv(inputs, outputs, self.subnets, kernel, stride, depthwise)
        return [conv, self.norm(outputs, self.subnets), *([activation] if activation else [])]

    def classifier(self, inputs: Channels, classes: int) -> nn.Module:
        return nn.Sequential(Linear(inputs, classes, self.subnets))

    def alike(self, some: Channels, others: Channels) -> bool:
        """Whether two tensors have as many channels as each other in every sub-network."""
        subnets = self.shaped or self.subnets
        return list(map(some, subnets)) == list(map(others, subnets))


class Block(nn.Module):
    """A chain, to whose output a shortcut's is added if there is one."""

    def __init__(
        self, body: Sequence[nn.Module], shortcut: nn.Module | None = None, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return out if self.activation is None else self.activation(out)


class Network(nn.Module):
    """Features, averaged over space and classified."""

    def __init__(self, features: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def linked(network: nn.Module, count: int) -> list[list[int]]:
    """The places of a list of `count` in groups: tensors that blocks add have as many channels as each other."""
    group = list(range(count))
    for block in network.modules():
        if isinstance(block, Block) and isinstance(block.shortcut, nn.Identity):
            convs = [module for module in block.body if isinstance(module, Conv)]
            inputs, outputs = (group[channels.args[0]] for channels in (convs[0].inputs, convs[-1].outputs))
            group = [inputs if one == outputs else one for one in group]
    return [[place for place in range(count) if group[place] == one] for one in dict.fromkeys(group)]
