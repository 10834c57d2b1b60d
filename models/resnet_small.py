"""Adaptive-depth ResNets for images of about 32×32: those that the ResNet paper made for CIFAR-10 (He et al., 4.2).

Three stages of n blocks, 6n + 2 layers, with 16, 32 and 64 channels: ten times cheaper than ResNet-18 with a small
stem. One is shallower than theirs, and half of its blocks can be skipped. Shortcuts have no weights, and so no norm
that super-net and base-net would have to share. torchvision has the block but no such network; the plain one is here
too.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from .adaptive import AdaptiveDepth, Stage
from .registry import network


class WeightlessShortcut(nn.Module):
    """Every second pixel; the channels that the input does not have are 0."""

    def forward(self, x: Tensor) -> Tensor:
        missing = x.shape[1]
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, missing // 2, missing - missing // 2))


class SmallResNet(nn.Module):
    def __init__(self, blocks: int, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, blocks)
        self.layer2 = _stage(width, 2 * width, blocks)
        self.layer3 = _stage(2 * width, 4 * width, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    stride = outputs // inputs
    first = BasicBlock(inputs, outputs, stride, WeightlessShortcut() if stride > 1 else None)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


class AdaptiveSmallResNet(AdaptiveDepth, SmallResNet):
    def __init__(self, blocks: int, **kwargs: Any) -> None:
        super().__init__(blocks, **kwargs)
        for name in ("layer1", "layer2", "layer3"):
            setattr(self, name, Stage(*getattr(self, name)))
        self.adapt()

    def _embed(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def _body(self) -> Iterable[nn.Module]:
        return self.layer1, self.layer2, self.layer3

    def _classify(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(x), 1))


network("resnet14", AdaptiveSmallResNet, 2)
network("resnet20", AdaptiveSmallResNet, 3)
network("resnet32", AdaptiveSmallResNet, 5)
network("resnet56", AdaptiveSmallResNet, 9)
