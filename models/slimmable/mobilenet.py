"""MobileNets of several widths: V1 (chains of depthwise and 1×1 convolutions), V2 and MNasNet (inverted residuals)."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from ..registry import network
from . import lists
from .channels import RGB, Channels, fixed, rounded, times
from .layers import Block, Layers, Network
from .widths import Listed, Ranged, Rows, widths_from

V1 = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
V1_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
# of the stem and each block
V2 = (32, 16, *2 * (24,), *3 * (32,), *4 * (64,), *3 * (96,), *3 * (160,), 320)
V2_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
MNASNET_STRIDES = (1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 2, 1, 1, 1, 1)
MNASNET_KERNELS = (3, 3, 3, 3, 5, 5, 5, 5, 5, 5, 3, 3, 5, 5, 5, 5, 3)


def _strides(strides: Sequence[int], stem: str) -> list[int]:
    """Of the stem and the blocks. With a small stem, it and the first block that would do not shrink images."""
    strides = [2, *strides]
    if stem == "small":
        strides[0] = strides[strides.index(2, 1)] = 1
    return strides


class MobileNetV1(Network):
    def __init__(
        self, layers: Layers, counts: Sequence[Channels], num_classes: int = 1000, stem: str = "imagenet"
    ) -> None:
        """`counts` are of the stem's output and of each block's."""
        first, *strides = _strides(V1_STRIDES, stem)
        features = [nn.Sequential(*layers.unit(RGB, counts[0], 3, first, nn.ReLU6(inplace=True)))]
        for inputs, outputs, stride in zip(counts, counts[1:], strides, strict=False):
            depthwise = layers.unit(inputs, inputs, 3, stride, nn.ReLU6(inplace=True), depthwise=True)
            features.append(Block(depthwise + layers.unit(inputs, outputs, activation=nn.ReLU6(inplace=True))))
        super().__init__(features, layers.classifier(counts[-1], num_classes))


class MobileNetV2(Network):
    def __init__(
        self,
        layers: Layers,
        counts: Sequence[Channels],
        num_classes: int = 1000,
        stem: str = "imagenet",
        strides: Sequence[int] = V2_STRIDES,
        kernels: Sequence[int] = (3,) * 17,
        shared_tail: bool = False,
    ) -> None:
        """`counts` are of the stem, the first block, inside and after each further block, and of the last convolution.

        A shared tail has one ordinary batch norm for all sub-networks.
        """
        inputs, *counts, tail = counts
        first, *strides = _strides(strides, stem)
        features = [nn.Sequential(*layers.unit(RGB, inputs, 3, first, nn.ReLU6(inplace=True)))]
        hidden = [inputs, *counts[1::2]]
        for inside, outputs, kernel, stride in zip(hidden, counts[::2], kernels, strides, strict=True):
            features.append(_inverted_residual(layers, inputs, inside, outputs, kernel, stride))
            inputs = outputs
        last = layers.unit(inputs, tail, activation=nn.ReLU6(inplace=True))
        classifier = layers.classifier(tail, num_classes)
        if shared_tail:
            last[1] = nn.BatchNorm2d(last[0].out_channels)
        super().__init__([*features, nn.Sequential(*last)], classifier)


def _inverted_residual(
    layers: Layers, inputs: Channels, inside: Channels, outputs: Channels, kernel: int, stride: int
) -> nn.Module:
    body = []
    if not layers.alike(inputs, inside):
        body += layers.unit(inputs, inside, activation=nn.ReLU6(inplace=True))
    body += layers.unit(inside, inside, kernel, stride, nn.ReLU6(inplace=True), depthwise=True)
    body += layers.unit(inside, outputs)
    return Block(body, nn.Identity() if stride == 1 and layers.alike(inputs, outputs) else None)


class SlimmableMobileNetV1(Listed, MobileNetV1):
    pass


class SlimmableMobileNetV2(Listed, MobileNetV2):
    pass


class AutoSlimMobileNetV1(Rows, MobileNetV1):
    pass


class AutoSlimMobileNetV2(Rows, MobileNetV2):
    pass


class UniversalMobileNetV1(Ranged, MobileNetV1):
    pass


class UniversalMobileNetV2(Ranged, MobileNetV2):
    pass


v1 = [partial(rounded, count) for count in V1]
v2 = [partial(rounded, count) for count in V2]
for number in range(2, len(V2)):  # before each block's output what is inside it
    v2.insert(2 * number - 2, partial(times, 6, v2[2 * number - 3]))
v2.append(partial(fixed, 1280))

network("s_mobilenet_v1", SlimmableMobileNetV1, v1, widths=(0.25, 0.5, 0.75, 1.0))
network("s_mobilenet_v2", SlimmableMobileNetV2, v2, widths=(0.35, 0.5, 0.75, 1.0), shared_tail=True)
network("us_mobilenet_v1", UniversalMobileNetV1, v1, widths=widths_from(0.25))
network("us_mobilenet_v2", UniversalMobileNetV2, v2, widths=widths_from(0.35), shared_tail=True)
network("autoslim_mobilenet_v1", AutoSlimMobileNetV1, lists.MOBILENET_V1)
network("autoslim_mobilenet_v2", AutoSlimMobileNetV2, lists.MOBILENET_V2)
mnasnet = {"strides": MNASNET_STRIDES, "kernels": MNASNET_KERNELS}
network("autoslim_mnasnet", AutoSlimMobileNetV2, lists.MNASNET, **mnasnet)
