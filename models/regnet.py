"""Adaptive-depth RegNets.

A stage of a single block has nothing to skip. Before the first skippable stage it is an ordinary part of the stem;
behind one it follows that stage's flag, as MobileNetV2's last single block does. Shortcuts' norms are not switched.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torchvision.models import regnet
from torchvision.models.regnet import BlockParams

from .adaptive import AdaptiveDepth, Stage
from .registry import network


class AdaptiveRegNet(AdaptiveDepth, regnet.RegNet):
    """`numbers`: depth, w_0, w_a, w_m and group width of a RegNetY, as its paper counts them."""

    settings = ("stem",)

    def __init__(self, *numbers: float, stem: str = "imagenet", **kwargs: Any) -> None:
        parameters = BlockParams.from_init_params(*numbers, se_ratio=0.25)
        if stem == "small":  # images of about 32×32: shrink them three times instead of five
            parameters.strides[0] = 1
        super().__init__(parameters, **kwargs)
        if stem == "small":
            self.stem[0].stride = (1, 1)
        for name, blocks in list(self.trunk_output.named_children()):
            if len(blocks) > 1:
                setattr(self.trunk_output, name, Stage(OrderedDict(blocks.named_children())))
        self.before = next(n for n, blocks in enumerate(self.trunk_output) if isinstance(blocks, Stage))
        self.adapt(leave=("proj",))

    def _embed(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in list(self.trunk_output)[: self.before]:
            x = stage(x)
        return x

    def _body(self) -> Iterable[nn.Module]:
        return self.trunk_output[self.before :]

    def _classify(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(x).flatten(1))


network("regnet_y_400mf", AdaptiveRegNet, 16, 48, 27.89, 2.09, 8)
network("regnet_y_3_2gf", AdaptiveRegNet, 21, 80, 42.63, 2.66, 24)
