"""ResNets of several widths. Every convolution but the shortcuts' may have a number of channels of its own."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from ..registry import network
from . import lists
from .channels import RGB, Channels, part, truncated
from .layers import Block, Layers, Network
from .widths import Listed, Ranged, Rows, widths_from

LAYERS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ResNet(Network):
    def __init__(
        self,
        layers: Layers,
        blocks: Sequence[int],
        counts: Sequence[Channels],
        num_classes: int = 1000,
        stem: str = "imagenet",
    ) -> None:
        """`counts` are of the stem and of each convolution of each block, two or three."""
        inputs, *rest = counts
        each = len(rest) // sum(blocks)
        kernels = (3, 3) if each == 2 else (1, 3, 1)
        small = stem == "small"  # keeps the resolution of images of about 32 pixels
        first = layers.unit(RGB, inputs, *((3, 1) if small else (7, 2)), nn.ReLU(inplace=True))
        features = [nn.Sequential(*first, nn.Identity() if small else nn.MaxPool2d(3, 2, 1))]
        strides = [2 if stage and not number else 1 for stage, count in enumerate(blocks) for number in range(count)]
        for number, stride in enumerate(strides):
            outputs = rest[number * each : (number + 1) * each]
            features.append(_block(layers, inputs, outputs, kernels, stride))
            inputs = outputs[-1]
        super().__init__(features, layers.classifier(inputs, num_classes))


def _block(
    layers: Layers, inputs: Channels, outputs: Sequence[Channels], kernels: Sequence[int], stride: int
) -> nn.Module:
    """The stride is the first 3×3 convolution's."""
    body, x = [], inputs
    for number, (channels, kernel) in enumerate(zip(outputs, kernels, strict=True)):
        activation = nn.ReLU(inplace=True) if number < len(kernels) - 1 else None
        body += layers.unit(x, channels, kernel, stride if number == kernels.index(3) else 1, activation)
        x = channels
    same = stride == 1 and layers.alike(inputs, x)
    shortcut = nn.Identity() if same else nn.Sequential(*layers.unit(inputs, x, stride=stride))
    return Block(body, shortcut, nn.ReLU(inplace=True))


def _counts(blocks: Sequence[int], bottleneck: bool) -> list[Channels]:
    counts = [partial(truncated, 64)]
    for count, channels in zip(blocks, (64, 128, 256, 512), strict=True):
        outputs = partial(truncated, 4 * channels if bottleneck else channels)
        inside = [partial(part, 4, outputs)] * 2 if bottleneck else [outputs]
        counts += count * [*inside, outputs]
    return counts


class SlimmableResNet(Listed, ResNet):
    pass


class AutoSlimResNet(Rows, ResNet):
    pass


class UniversalResNet(Ranged, ResNet):
    pass


for depth, blocks in LAYERS.items():
    shape = blocks, _counts(blocks, depth > 34)
    network(f"s_resnet{depth}", SlimmableResNet, *shape, widths=(0.25, 0.5, 0.75, 1.0))
network("us_resnet50", UniversalResNet, LAYERS[50], _counts(LAYERS[50], True), widths=widths_from(0.25))
network("autoslim_resnet50", AutoSlimResNet, LAYERS[50], lists.RESNET50)
