"""Adaptive-depth ConvNeXts.

As in Swin, what shrinks the image belongs to the stage behind it: its norm, too, is switched by that flag.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import convnext
from torchvision.models.convnext import CNBlockConfig

from .adaptive import AdaptiveDepth, Mandatory, make_mandatory, split
from .registry import network


class MandatoryCNBlock(Mandatory, convnext.CNBlock):
    """The layer norm in its chain has a twin."""


class AdaptiveConvNeXt(AdaptiveDepth, convnext.ConvNeXt):
    def __init__(
        self,
        block_setting: list[CNBlockConfig],
        *,
        stem: str = "imagenet",
        switchable_norms: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(block_setting, **kwargs)
        if stem == "small":
            self.features[0][0] = nn.Conv2d(3, block_setting[0].input_channels, kernel_size=3, padding=1)
            nn.init.trunc_normal_(self.features[0][0].weight, std=0.02)
            nn.init.zeros_(self.features[0][0].bias)
        self.features = nn.Sequential(
            self.features[0],
            *(
                (split if isinstance(module[0], convnext.CNBlock) else make_mandatory)(module, switchable_norms)
                for module in self.features[1:]
            ),
        )

    def _embed(self, x: Tensor) -> Tensor:
        return self.features[0](x)

    def _paths(self) -> Sequence[Sequence[nn.Module]]:
        _, first, *others = self.features
        return [[first], *zip(others[::2], others[1::2], strict=True)]

    def _classify(self, x: Tensor, skip: bool) -> Tensor:
        return self.classifier(self.avgpool(x))


def _convnext(widths: Sequence[int], depths: Sequence[int], drop: float, **kwargs: Any) -> AdaptiveConvNeXt:
    setting = [CNBlockConfig(a, b, n) for a, b, n in zip(widths, [*widths[1:], None], depths, strict=True)]
    return AdaptiveConvNeXt(setting, **{"stochastic_depth_prob": drop, **kwargs})


@network("stem")
def convnext_tiny(**kwargs: Any) -> AdaptiveConvNeXt:
    return _convnext([96, 192, 384, 768], [3, 3, 9, 3], 0.1, **kwargs)


@network("stem")
def convnext_small(**kwargs: Any) -> AdaptiveConvNeXt:
    return _convnext([96, 192, 384, 768], [3, 3, 27, 3], 0.4, **kwargs)


@network("stem")
def convnext_base(**kwargs: Any) -> AdaptiveConvNeXt:
    return _convnext([128, 256, 512, 1024], [3, 3, 27, 3], 0.5, **kwargs)
