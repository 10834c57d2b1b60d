"""The slimmable MobileNet: its layers know their channel counts, and give by `at` what runs in a sub-network.

Every stage has a list of channel counts. In the network `largest` all stages have their last one. In the uniform ones
those before the gate have their first, and those behind it, which have as many as there are uniform networks, theirs.
Names are those of the released weights: `gate` is the attention of a block, and the gate that chooses is in it.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..leading import LeadingBatchNorm2d, LeadingConv2d, LeadingLinear
from ..selection import with_children

Channels = Sequence[int]  # a layer's counts, from the smallest to the largest

LARGEST = "largest"
SMALLEST = "smallest"  # the first of the uniform networks
ROUTES = 4  # the gate chooses from this many of the uniform networks, the smallest ones
WIDTHS = ((16, 24), (32, 88), (48, 168), (96, 264), range(224, 641, 32), range(736, 1153, 32))
EARLY = 2  # channel counts of a stage before the gate


def width(channels: Channels, subnet: str) -> int:
    """The count that a sub-network uses."""
    if subnet == LARGEST:
        return channels[-1]
    number = 0 if subnet == SMALLEST else int(subnet.rpartition("_")[2])
    return channels[number if len(channels) > EARLY else 0]


class Conv(LeadingConv2d):
    def __init__(
        self, inputs: Channels, outputs: Channels, kernel: int = 1, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> None:
        super().__init__(inputs[-1], outputs[-1], kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.counts = outputs, inputs
        nn.init.normal_(self.weight, std=math.sqrt(2 * groups / (kernel**2 * outputs[-1])))
        if bias:
            nn.init.zeros_(self.bias)

    def at(self, subnet: str) -> nn.Module:
        return self.leading(*(width(channels, subnet) for channels in self.counts))


class Norm(nn.Module):
    """Running statistics for each channel count; weight and bias are the last one's, shared by all."""

    def __init__(self, channels: Channels) -> None:
        super().__init__()
        *narrow, last = channels
        self.channels = channels
        self.aux_bn = nn.ModuleList(nn.BatchNorm2d(count, affine=False) for count in narrow)
        self.aux_bn.append(nn.BatchNorm2d(last))

    def at(self, subnet: str) -> nn.Module:
        count, last = width(self.channels, subnet), self.aux_bn[-1]
        buffers = self.aux_bn[self.channels.index(count)]._buffers
        return LeadingBatchNorm2d(count, last.weight, last.bias, buffers, last.eps, last.momentum)


class Attention(nn.Module):
    """Weighs channels by what is in the image. The gate, where there is one, sees what that is gathered from."""

    def __init__(self, channels: Channels, routes: int) -> None:
        super().__init__()
        squeezed = (round(channels[-1] / 4),)
        self.conv_reduce = Conv(channels, squeezed, bias=True)
        self.conv_expand = Conv(squeezed, channels, bias=True)
        if routes:
            self.gate = nn.Sequential(Conv(squeezed, (routes,)))

    def at(self, subnet: str) -> nn.Module:
        """Without the gate, which only chooses between sub-networks."""
        return with_children(self, {name: getattr(self, name) for name in ("conv_reduce", "conv_expand")})

    def squeeze(self, x: Tensor) -> Tensor:
        return F.relu(self.conv_reduce(x.mean(dim=(2, 3), keepdim=True)))


class Block(nn.Module):
    def __init__(self, inputs: Channels, outputs: Channels, stride: int, routes: int = 0) -> None:
        super().__init__()
        self.conv_dw = Conv(inputs, inputs, 3, stride, groups=inputs[-1])
        self.bn1 = Norm(inputs)
        self.gate = Attention(inputs, routes)
        self.conv_pw = Conv(inputs, outputs)
        self.bn2 = Norm(outputs)

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As far as it computes with the channels of its input, and what a gate sees."""
        x = F.silu(self.bn1(self.conv_dw(x)))
        squeezed = self.gate.squeeze(x)
        return x * self.gate.conv_expand(squeezed).sigmoid(), squeezed

    def end(self, x: Tensor) -> Tensor:
        return F.silu(self.bn2(self.conv_pw(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.begin(x)[0])


class Stage(nn.Module):
    def __init__(self, inputs: Channels, outputs: Channels, stride: int, blocks: int, routes: int) -> None:
        super().__init__()
        self.first_block = Block(inputs, outputs, stride, routes)
        self.residual_blocks = nn.Sequential(*(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


class Dropout(nn.Dropout):
    """In the largest network alone."""

    def at(self, subnet: str) -> nn.Module:
        return nn.Dropout(self.p if subnet == LARGEST else 0.0)


class Classifier(LeadingLinear):
    def __init__(self, channels: Channels, num_classes: int) -> None:
        super().__init__(channels[-1], num_classes)
        self.channels = channels
        nn.init.uniform_(self.weight, -(num_classes**-0.5), num_classes**-0.5)
        nn.init.zeros_(self.bias)

    def at(self, subnet: str) -> nn.Module:
        return self.leading(width(self.channels, subnet))


class SlimmableMobileNet(nn.Module):
    """`widths` are the channel counts of the stem and of the stages. The gate is in the first stage of many."""

    def __init__(
        self,
        num_classes: int = 1000,
        widths: Sequence[Channels] = WIDTHS,
        blocks: Sequence[int] = (1, 2, 2, 6, 2),
        dropout: float = 0.2,
        stem: str = "imagenet",
    ) -> None:
        super().__init__()
        self.gated = next(stage for stage, channels in enumerate(widths[1:]) if len(channels) > EARLY)
        strides = [2, 1, 2, 2, 2, 2] if stem == "imagenet" else [1, 1, 1, 2, 2, 2]
        self.conv_stem = Conv((3,), widths[0], 3, strides[0])
        self.bn1 = Norm(widths[0])
        stages = zip(widths, widths[1:], strides[1:], blocks, strict=False)
        self.blocks = nn.Sequential(
            *(Stage(*stage, ROUTES if number == self.gated else 0) for number, stage in enumerate(stages))
        )
        self.dropout = Dropout(dropout)
        self.classifier = Classifier(widths[-1], num_classes)

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the uniform networks have in common, and what the gate sees."""
        x = F.silu(self.bn1(self.conv_stem(x)))
        for block in self.chain(0, self.gated):
            x = block(x)
        return self.blocks[self.gated].first_block.begin(x)

    def rest(self, x: Tensor) -> Tensor:
        first, *later = self.chain(self.gated)
        x = first.end(x)
        for block in later:
            x = block(x)
        return self.classifier(self.dropout(x.mean(dim=(2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.trunk(x)[0])

    def chain(self, begin: int = 0, end: int | None = None) -> list[Block]:
        """The blocks of some stages, one after the other."""
        stages = list(self.blocks)[begin:end]
        return [block for stage in stages for block in (stage.first_block, *stage.residual_blocks)]

    def operations(self, size: int, pools: bool = False, groups_of: "SlimmableMobileNet | None" = None) -> float:
        """Multiply-accumulates of an image. The authors count the values that are averaged too (`pools`).

        While their gate learns, they take a depthwise convolution's groups from the last network that ran without
        the gate (`groups_of`).
        """
        size = -(-size // self.conv_stem.stride[0])
        total = 9 * self.conv_stem.in_channels * self.conv_stem.out_channels * size**2
        for block, other in zip(self.chain(), (groups_of or self).chain(), strict=True):
            size = -(-size // block.conv_dw.stride[0])
            inputs, outputs = block.conv_pw.in_channels, block.conv_pw.out_channels
            depthwise = 9 * inputs**2 / other.conv_dw.in_channels
            total += (depthwise + inputs * outputs + pools * inputs) * size**2
            total += 2 * inputs * block.gate.conv_reduce.out_channels
        features = self.classifier.in_features
        return total + features * (self.classifier.out_features + pools * size**2)
