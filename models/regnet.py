"""Adaptive-depth RegNets.

A stage of a single block has nothing to skip. Before the first skippable stage it is an ordinary part of the stem;
behind one it follows that stage's flag, as MobileNetV2's last single block does. Shortcuts' norms are not switched.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import regnet
from torchvision.models.regnet import BlockParams
from torchvision.ops import Conv2dNormActivation

from .adaptive import AdaptiveDepth, Mandatory, MandatorySequential, run, split
from .registry import network


class MandatoryRegNetBlock(Mandatory, regnet.ResBottleneckBlock):
    """The norms of a, b and c have twins."""

    entry = ("proj",)


class MandatoryTransform(MandatorySequential, regnet.BottleneckTransform):
    """A chain of mandatory units."""


class MandatoryConvNormActivation(MandatorySequential, Conv2dNormActivation):
    """Its norm has a twin."""


class AdaptiveRegNet(AdaptiveDepth, regnet.RegNet):
    def __init__(
        self, block_params: BlockParams, *, stem: str = "imagenet", switchable_norms: bool = True, **kwargs: Any
    ) -> None:
        if stem == "small":  # images of about 32×32: shrink them three times instead of five
            block_params.strides[0] = 1
        super().__init__(block_params, **kwargs)
        if stem == "small":
            self.stem[0].stride = (1, 1)
        first = next(i for i, depth in enumerate(block_params.depths) if depth > 1)
        for i, (name, blocks) in enumerate(list(self.trunk_output.named_children())):
            if i >= first:
                setattr(self.trunk_output, name, split(blocks, switchable_norms, leave=("proj",)))

    def _embed(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for blocks in self.trunk_output:
            if not isinstance(blocks, Mandatory):
                x = blocks(x)
        return x

    def _paths(self) -> Sequence[Sequence[nn.Module]]:
        stages = [stage for stage in self.trunk_output if isinstance(stage, Mandatory) and len(stage) > 1]
        return [[stage] for stage in stages]

    def _tail(self) -> Sequence[nn.Module]:
        *_, last = self.trunk_output
        return [last] if len(last) == 1 else []

    def _classify(self, x: Tensor, skip: bool) -> Tensor:
        x = run(self._tail(), x, skip)
        return self.fc(self.avgpool(x).flatten(1))


def _regnet_y(depth: int, w_0: int, w_a: float, w_m: float, group_width: int, **kwargs: Any) -> AdaptiveRegNet:
    params = BlockParams.from_init_params(depth, w_0, w_a, w_m, group_width, se_ratio=0.25)
    return AdaptiveRegNet(params, **kwargs)


@network("stem")
def regnet_y_400mf(**kwargs: Any) -> AdaptiveRegNet:
    return _regnet_y(16, 48, 27.89, 2.09, 8, **kwargs)


@network("stem")
def regnet_y_3_2gf(**kwargs: Any) -> AdaptiveRegNet:
    return _regnet_y(21, 80, 42.63, 2.66, 24, **kwargs)
