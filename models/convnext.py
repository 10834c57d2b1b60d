"""Adaptive-depth ConvNeXts.

As in Swin, what shrinks the image belongs to the stage behind it: its norm, too, is switched by that flag.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import convnext
from torchvision.models.convnext import CNBlock, CNBlockConfig

from .adaptive import AdaptiveDepth, Stage
from .registry import network


class AdaptiveConvNeXt(AdaptiveDepth, convnext.ConvNeXt):
    settings = ("stem",)

    def __init__(self, widths: Sequence[int], depths: Sequence[int], *, stem: str = "imagenet", **kwargs: Any) -> None:
        blocks = [CNBlockConfig(a, b, n) for a, b, n in zip(widths, [*widths[1:], None], depths, strict=True)]
        super().__init__(blocks, **kwargs)
        if stem == "small":
            self.features[0][0] = nn.Conv2d(3, widths[0], kernel_size=3, padding=1)
            nn.init.trunc_normal_(self.features[0][0].weight, std=0.02)
            nn.init.zeros_(self.features[0][0].bias)
        self.features = nn.Sequential(*(Stage(*m) if isinstance(m[0], CNBlock) else m for m in self.features))
        self.adapt()

    def _embed(self, x: Tensor) -> Tensor:
        return self.features[0](x)

    def _body(self) -> Iterable[nn.Module]:
        return self.features[1:]

    def _classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(x))


network("convnext_tiny", AdaptiveConvNeXt, (96, 192, 384, 768), (3, 3, 9, 3), stochastic_depth_prob=0.1)
network("convnext_small", AdaptiveConvNeXt, (96, 192, 384, 768), (3, 3, 27, 3), stochastic_depth_prob=0.4)
network("convnext_base", AdaptiveConvNeXt, (128, 256, 512, 1024), (3, 3, 27, 3), stochastic_depth_prob=0.5)
