"""MobileNets of several widths: V1 (chains of depthwise and 1×1 convolutions), V2 and MNasNet (inverted residuals)."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from ..mobilenetv2 import GROUPS, SMALL
from ..registry import network
from . import lists
from .channels import RGB, Channels, fixed, rounded, times
from .layers import Block, Layers, Network
from .widths import Listed, Ranged, Rows, widths_from

V1 = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
V1_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
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
        *,
        strides: Sequence[int],
        kernels: Sequence[int] | None = None,
        shared_tail: bool = False,
    ) -> None:
        """`counts` are of the stem, the first block, inside and after each further block, and of the last convolution.

        A shared tail has one ordinary batch norm for all sub-networks.
        """
        inputs, *counts, tail = counts
        first, *strides = _strides(strides, stem)
        features = [nn.Sequential(*layers.unit(RGB, inputs, 3, first, nn.ReLU6(inplace=True)))]
        hidden = [inputs, *counts[1::2]]
        kernels = kernels or [3] * len(strides)
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


def _v2(groups: Sequence[Sequence[int]]) -> tuple[list[Channels], list[int]]:
    """The channels and the strides of a MobileNetV2's table."""
    counts, strides = [partial(rounded, 32)], []
    for expansion, channels, repeats, stride in groups:
        for number in range(repeats):
            if strides:  # all blocks but the first are wider inside
                counts.append(partial(times, expansion, counts[-1]))
            counts.append(partial(rounded, channels))
            strides.append(1 if number else stride)
    return [*counts, partial(fixed, 1280)], strides


v1 = [partial(rounded, count) for count in V1]
network("s_mobilenet_v1", SlimmableMobileNetV1, v1, widths=(0.25, 0.5, 0.75, 1.0))
network("us_mobilenet_v1", UniversalMobileNetV1, v1, widths=widths_from(0.25))
for name, groups in (("mobilenet_v2", GROUPS), ("mobilenet_v2_small", SMALL)):
    v2, strides = _v2(groups)
    rest = {"strides": strides, "shared_tail": True}
    network(f"s_{name}", SlimmableMobileNetV2, v2, widths=(0.35, 0.5, 0.75, 1.0), **rest)
    network(f"us_{name}", UniversalMobileNetV2, v2, widths=widths_from(0.35), **rest)
network("autoslim_mobilenet_v1", AutoSlimMobileNetV1, lists.MOBILENET_V1)
_, strides = _v2(GROUPS)
network("autoslim_mobilenet_v2", AutoSlimMobileNetV2, lists.MOBILENET_V2, strides=strides)
mnasnet = {"strides": MNASNET_STRIDES, "kernels": MNASNET_KERNELS}
network("autoslim_mnasnet", AutoSlimMobileNetV2, lists.MNASNET, **mnasnet)
