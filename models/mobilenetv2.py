"""Adaptive-depth MobileNetV2: the five groups of two or more inverted residuals are its skippable stages.

The stem and the first single block follow the first flag; the last single block and the last convolution the last
one. Every convolution and its norm form one module, `ConvNorm`, which is what the released weights' names are made of.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenetv2

from .adaptive import AdaptiveDepth, Stage
from .registry import network
from .selection import with_children

# expansion, channels, repeats, stride: the paper's table, which torchvision keeps inside its constructor
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
SMALL = ((1, 16, 1, 1), (4, 24, 2, 1), (4, 32, 2, 2), (4, 64, 2, 2))  # for images of about 32 pixels


class ConvNorm(nn.Module):
    """Convolution, norm and, unless it is linear, activation."""

    def __init__(self, conv: nn.Module, norm: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.conv_layer = conv
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv_layer(x))
        return x if self.activation is None else self.activation(x)


class AdaptiveMobileNetV2(AdaptiveDepth, mobilenetv2.MobileNetV2):
    settings = ("stem",)

    def __init__(
        self, *, stem: str = "imagenet", inverted_residual_setting: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> None:
        setting = [list(row) for row in inverted_residual_setting or GROUPS]
        if stem == "small":  # images of about 32×32: shrink them three times instead of five
            setting[1][3] = 1
        super().__init__(inverted_residual_setting=setting, **kwargs)
        if stem == "small":
            self.features[0][0].stride = (1, 1)
        first, *blocks, last = self.features
        self.features = nn.Sequential(ConvNorm(*first))
        for _, _, repeats, _ in setting:
            group, blocks = blocks[:repeats], blocks[repeats:]
            for block in group:
                *activated, linear, norm = block.conv
                block.conv = nn.Sequential(*(ConvNorm(*unit) for unit in activated), ConvNorm(linear, norm))
            self.features.append(group[0] if repeats == 1 else Stage(*group))
        self.features.append(ConvNorm(*last))
        self.adapt()

    def _body(self) -> Iterable[nn.Module]:
        return self.features

    def _classify(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))

    def _tidy_plain(self, plain: nn.Module) -> None:
        """One flat chain of blocks, of convolutions and norms by torchvision's names."""
        modules = []
        for module in plain.features:
            modules += list(module) if isinstance(module, nn.Sequential) else [module]
        plain.features = nn.Sequential(*map(_without_units, modules))


def _without_units(module: nn.Module) -> nn.Module:
    if isinstance(module, ConvNorm):
        return nn.Sequential(module.conv_layer, module.norm, module.activation)
    *activated, linear = module.conv
    chain = [*map(_without_units, activated), linear.conv_layer, linear.norm]
    return with_children(module, {"conv": nn.Sequential(*chain)})


network("mobilenet_v2", AdaptiveMobileNetV2)
network("mobilenet_v2_small", AdaptiveMobileNetV2, inverted_residual_setting=SMALL)
