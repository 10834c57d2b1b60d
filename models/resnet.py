"""Adaptive-depth ResNets: torchvision's own, each of the four layers split in two.

The stem's and the shortcuts' norms are not switched. The variants `…vd` shrink a shortcut by an average pool before a
convolution of stride 1, instead of by the stride.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock, Bottleneck

from .adaptive import AdaptiveDepth, Stage
from .registry import network


class AdaptiveResNet(AdaptiveDepth, resnet.ResNet):
    settings = ("stem",)

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        *,
        stem: str = "imagenet",
        pooled_shortcuts: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(block, list(layers), **kwargs)
        if stem == "small":
            self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            layer = getattr(self, name)
            shortcut = layer[0].downsample
            if pooled_shortcuts and shortcut is not None and shortcut[0].stride == (2, 2):
                shortcut[0].stride = (1, 1)
                layer[0].downsample = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), *shortcut)
            setattr(self, name, Stage(*layer))
        self.adapt(leave=("downsample",))

    def _embed(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def _body(self) -> Iterable[nn.Module]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def _classify(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(x), 1))


network("resnet18", AdaptiveResNet, BasicBlock, (2, 2, 2, 2))
network("resnet34", AdaptiveResNet, BasicBlock, (3, 4, 6, 3))
network("resnet50", AdaptiveResNet, Bottleneck, (3, 4, 6, 3))
network("resnet101", AdaptiveResNet, Bottleneck, (3, 4, 23, 3))
network("resnet152", AdaptiveResNet, Bottleneck, (3, 8, 36, 3))
network("resnet50vd", AdaptiveResNet, Bottleneck, (3, 4, 6, 3), pooled_shortcuts=True)
network("resnet101vd", AdaptiveResNet, Bottleneck, (3, 4, 23, 3), pooled_shortcuts=True)
network("resnext50_32x4d", AdaptiveResNet, Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4)
network("wide_resnet50_2", AdaptiveResNet, Bottleneck, (3, 4, 6, 3), width_per_group=128)
