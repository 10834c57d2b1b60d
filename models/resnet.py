"""Adaptive-depth ResNets: torchvision's own, each of the four layers split in two.

The stem's and the shortcuts' norms are not switched. The variants `…vd` shrink a shortcut by an average pool before a
convolution of stride 1, instead of by the stride.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from .adaptive import AdaptiveDepth, Mandatory, split
from .registry import network


class MandatoryBasicBlock(Mandatory, resnet.BasicBlock):
    """bn1 and bn2 have twins."""

    entry = ("conv1", "downsample")


class MandatoryBottleneck(Mandatory, resnet.Bottleneck):
    """bn1, bn2 and bn3 have twins."""

    entry = ("conv1", "downsample")


class AdaptiveResNet(AdaptiveDepth, resnet.ResNet):
    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        *,
        stem: str = "imagenet",
        pooled_shortcuts: bool = False,
        switchable_norms: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(block, list(layers), **kwargs)
        if stem == "small":
            self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            layer = getattr(self, name)
            if pooled_shortcuts:
                _pool_shortcut(layer[0])
            setattr(self, name, split(layer, switchable_norms, leave=("downsample",)))

    def _embed(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def _paths(self) -> Sequence[Sequence[nn.Module]]:
        return [self.layer1], [self.layer2], [self.layer3], [self.layer4]

    def _classify(self, x: Tensor, skip: bool) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _pool_shortcut(block: nn.Module) -> None:
    """The shortcut of a `…vd` network, where it shrinks the image."""
    if block.downsample is not None and block.downsample[0].stride == (2, 2):
        conv, norm = block.downsample
        conv.stride = (1, 1)
        block.downsample = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), conv, norm)


@network("stem")
def resnet18(**kwargs: Any) -> AdaptiveResNet:
    return AdaptiveResNet(resnet.BasicBlock, [2, 2, 2, 2], **kwargs)


@network("stem")
def resnet34(**kwargs: Any) -> AdaptiveResNet:
    return AdaptiveResNet(resnet.BasicBlock, [3, 4, 6, 3], **kwargs)


@network("stem")
def resnet50(**kwargs: Any) -> AdaptiveResNet:
    return AdaptiveResNet(resnet.Bottleneck, [3, 4, 6, 3], **kwargs)


@network("stem")
def resnet101(**kwargs: Any) -> AdaptiveResNet:
    return AdaptiveResNet(resnet.Bottleneck, [3, 4, 23, 3], **kwargs)


@network("stem")
def resnet152(**kwargs: Any) -> AdaptiveResNet:
    return AdaptiveResNet(resnet.Bottleneck, [3, 8, 36, 3], **kwargs)


@network("stem")
def resnet50vd(**kwargs: Any) -> AdaptiveResNet:
    return resnet50(pooled_shortcuts=True, **kwargs)


@network("stem")
def resnet101vd(**kwargs: Any) -> AdaptiveResNet:
    return resnet101(pooled_shortcuts=True, **kwargs)


@network("stem")
def resnext50_32x4d(**kwargs: Any) -> AdaptiveResNet:
    return resnet50(groups=32, width_per_group=4, **kwargs)


@network("stem")
def wide_resnet50_2(**kwargs: Any) -> AdaptiveResNet:
    return resnet50(width_per_group=128, **kwargs)
