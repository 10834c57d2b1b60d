"""Layers that compute with their leading channels: a narrower network is the first part of each tensor of a wider one.

`leading` gives a copy that shares the weights and says by its own `in_channels` and `out_channels` how many of them
run; the slices are taken in the forward pass. `plain` gives an ordinary layer with only these.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .selection import with_children
from .subnet import in_float32


class LeadingConv2d(nn.Conv2d):
    """Convolves with its first channels."""

    def leading(self, outputs: int, inputs: int) -> "LeadingConv2d":
        """Of a depthwise convolution (a group for each channel) `outputs` and `inputs` are equal."""
        new = with_children(self, {})
        depthwise = self.groups == self.in_channels > 1
        new.__dict__.update(out_channels=outputs, in_channels=inputs, groups=inputs if depthwise else self.groups)
        return new

    def _slices(self) -> tuple[Tensor, Tensor | None]:
        weight = self.weight[: self.out_channels, : self.in_channels // self.groups]
        return weight, None if self.bias is None else self.bias[: self.out_channels]

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self._slices())

    def plain(self) -> nn.Conv2d:
        shape = {name: getattr(self, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")}
        layer = nn.Conv2d(self.in_channels, self.out_channels, **shape, bias=self.bias is not None)
        return _with(layer, *self._slices())


class LeadingLinear(nn.Linear):
    """A classifier of its first features."""

    def leading(self, inputs: int) -> "LeadingLinear":
        new = with_children(self, {})
        new.in_features = inputs
        return new

    def forward(self, x: Tensor) -> Tensor:
        return in_float32(lambda x: F.linear(x, self.weight[:, : self.in_features], self.bias), x)

    def plain(self) -> nn.Linear:
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        return _with(layer, self.weight[:, : self.in_features], self.bias)


class LeadingBatchNorm2d(nn.BatchNorm2d):
    """A batch norm of `channels` channels whose weight and bias are the first of somebody else's.

    `buffers` are running statistics of its own. Without some it normalises by the batch in training, records nothing,
    and cannot evaluate.
    """

    def __init__(
        self,
        channels: int,
        weight: nn.Parameter,
        bias: nn.Parameter,
        buffers: Mapping[str, Tensor] | None,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(channels, eps, momentum, affine=False, track_running_stats=False)
        self.affine = True
        self.weight, self.bias = weight, bias
        if buffers is not None:
            self._buffers, self.track_running_stats = buffers, True

    def forward(self, x: Tensor) -> Tensor:
        if self.running_mean is None and not self.training:
            raise ValueError("this sub-network has no running statistics: calibrate it first")
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        weight, bias = self.weight[: self.num_features], self.bias[: self.num_features]
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, weight, bias, self.training, self.momentum, self.eps)

    def plain(self) -> nn.BatchNorm2d:
        layer = nn.BatchNorm2d(self.num_features, self.eps, self.momentum).to(self.weight)
        if self.running_mean is not None:
            for name, buffer in self._buffers.items():
                layer.get_buffer(name).copy_(buffer)
        return _with(layer, self.weight[: self.num_features], self.bias[: self.num_features])


@torch.no_grad()
def _with(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The layer with a copy of these, in their precision and place."""
    layer.to(weight)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer
