"""ShuffleNet of several widths. Its group convolutions are three convolutions of a third of the channels each."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import network
from .channels import RGB, Channels, difference, part, truncated
from .layers import Layers, Network
from .widths import Listed

GROUPS = 3
STAGES = ((240, 4), (480, 8), (960, 4))  # channels and blocks


def third(channels: Channels) -> Channels:
    return partial(part, GROUPS, channels)


class Unit(nn.Module):
    """Takes part in a residual sum, or at stride 2 gives the channels that its averaged input does not have."""

    def __init__(self, layers: Layers, inputs: Channels, outputs: Channels, stride: int, first: bool) -> None:
        super().__init__()
        self.shrinks, self.whole = stride == 2, first
        middle = partial(part, 4, outputs)
        new = partial(difference, outputs, inputs) if self.shrinks else outputs
        self.b = nn.Sequential(nn.ChannelShuffle(GROUPS), *layers.unit(middle, middle, 3, stride, depthwise=True))
        sees = inputs if first else third(inputs)
        for group in range(GROUPS):
            unit = layers.unit(sees, third(middle), activation=nn.ReLU(inplace=True))
            self.add_module(f"a_{group}", nn.Sequential(*unit))
        for group in range(GROUPS):
            self.add_module(f"c_{group}", nn.Sequential(*layers.unit(third(middle), third(new))))

    def forward(self, x: Tensor) -> Tensor:
        parts = GROUPS * (x,) if self.whole else x.chunk(GROUPS, dim=1)
        out = self.b(self._groups("a", parts))
        out = self._groups("c", out.chunk(GROUPS, dim=1))
        if self.shrinks:
            return torch.cat([F.relu(out), F.avg_pool2d(x, 3, 2, 1)], dim=1)
        return F.relu(out + x)

    def _groups(self, name: str, parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([getattr(self, f"{name}_{group}")(x) for group, x in enumerate(parts)], dim=1)


class ShuffleNet(Network):
    def __init__(self, layers: Layers, num_classes: int = 1000, stem: str = "imagenet") -> None:
        stem_out = partial(truncated, 24)
        features, inputs = [], stem_out
        for channels, count in STAGES:
            for number in range(count):
                outputs = partial(truncated, channels)
                features.append(Unit(layers, inputs, outputs, 1 if number else 2, first=not features))
                inputs = outputs
        super().__init__(features, layers.classifier(inputs, num_classes))
        small = stem == "small"  # keeps the resolution of images of about 32 pixels
        for group in range(GROUPS):
            head = layers.unit(RGB, third(stem_out), 3, 1 if small else 2, nn.ReLU(inplace=True))
            self.add_module(f"head_{group}", nn.Sequential(*head, nn.Identity() if small else nn.MaxPool2d(3, 2)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([getattr(self, f"head_{group}")(x) for group in range(GROUPS)], dim=1))


class SlimmableShuffleNet(Listed, ShuffleNet):
    pass


network("s_shufflenet", SlimmableShuffleNet, widths=(0.5, 1.0, 2.0))
