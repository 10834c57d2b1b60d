"""Adaptive-depth MobileNetV2: the five groups of two or more inverted residuals are its skippable stages.

The stem and the first single block follow the first flag; the last single block and the last convolution the last
one. Every convolution and its norm form one module, `ConvNorm`, which is what the released weights' names are made of.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenetv2
from torchvision.ops import Conv2dNormActivation

from .adaptive import AdaptiveDepth, Mandatory, make_mandatory, run, split
from .registry import network
from .subnet import with_children


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


class MandatoryConvNorm(Mandatory, ConvNorm):
    """norm has a twin."""

    entry = ("conv_layer",)


class MandatoryInvertedResidual(Mandatory, mobilenetv2.InvertedResidual):
    """Each of its units' norms has a twin."""


class AdaptiveMobileNetV2(AdaptiveDepth, mobilenetv2.MobileNetV2):
    def __init__(
        self,
        *,
        stem: str = "imagenet",
        switchable_norms: bool = True,
        inverted_residual_setting: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        setting = [list(row) for row in inverted_residual_setting or DEFAULT_SETTING]
        if stem == "small":  # images of about 32×32: shrink them three times instead of five
            setting[1][3] = 1
        super().__init__(inverted_residual_setting=setting, **kwargs)
        if stem == "small":
            self.features[0][0].stride = (1, 1)

        modules = [_unit(self.features[0])]
        blocks = list(self.features[1:-1])
        for _, _, repeats, _ in setting:
            group, blocks = blocks[:repeats], blocks[repeats:]
            for block in group:
                block.conv = nn.Sequential(*_units(block.conv))
            if repeats == 1:
                modules.append(make_mandatory(group[0], switchable_norms))
            else:
                modules.append(split(nn.Sequential(*group), switchable_norms))
        modules.append(_unit(self.features[-1]))
        for outer in (modules[0], modules[-1]):
            make_mandatory(outer, switchable_norms)
        self.features = nn.Sequential(*modules)

        stages = [i for i, (_, _, repeats, _) in enumerate(setting, start=1) if repeats > 1]
        self._ends = [0, *(i + 1 for i in stages)]

    def _embed(self, x: Tensor) -> Tensor:
        return x

    def _paths(self) -> Sequence[Sequence[nn.Module]]:
        modules = list(self.features)
        return [modules[a:b] for a, b in zip(self._ends[:-1], self._ends[1:], strict=True)]

    def _tail(self) -> Sequence[nn.Module]:
        return list(self.features)[self._ends[-1] :]

    def _classify(self, x: Tensor, skip: bool) -> Tensor:
        x = run(self._tail(), x, skip)
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))

    def _tidy_plain(self, plain: nn.Module) -> None:
        """One flat chain of blocks, of convolutions and norms by torchvision's names."""
        modules = []
        for module in plain.features:
            modules += list(module) if isinstance(module, nn.Sequential) else [module]
        plain.features = nn.Sequential(*map(_without_units, modules))


# expansion, channels, repeats, stride: the paper's table, which torchvision keeps inside its constructor
DEFAULT_SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _unit(module: Conv2dNormActivation) -> ConvNorm:
    return ConvNorm(*module)


def _units(conv: nn.Sequential) -> list[ConvNorm]:
    """An inverted residual's chain, [conv-norm-activation …, conv, norm], as units."""
    *activated, linear, norm = conv
    return [*map(_unit, activated), ConvNorm(linear, norm)]


def _without_units(module: nn.Module) -> nn.Module:
    """The inverse of the two above."""
    if isinstance(module, ConvNorm):
        return nn.Sequential(module.conv_layer, module.norm, module.activation)
    *activated, linear = module.conv
    chain = [*map(_without_units, activated), linear.conv_layer, linear.norm]
    return with_children(module, {"conv": nn.Sequential(*chain)})


@network("stem")
def mobilenet_v2(**kwargs: Any) -> AdaptiveMobileNetV2:
    return AdaptiveMobileNetV2(**kwargs)
