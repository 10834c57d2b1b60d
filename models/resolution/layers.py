"""Layers of scale-adaptive networks: kernels made of a scale encoding, and a norm for each trained resolution.

`at(scale)` gives what runs in a sub-network, `plain` an ordinary layer of it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..selection import with_children
from ..subnet import in_float32

MOST = 8  # encodings of which a layer keeps the kernel
SHAPE = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


class GeneratedConv2d(nn.Conv2d):
    """A convolution whose kernel, row by row, is encoding · weight + bias, each of one number per entry.

    In evaluation without gradients a kernel is made once. It is made anew when the parameters are others or have been
    written to, as far as torch counts that; fused optimizers and `.data` are not counted, but all that trains changes
    the mode or asks for gradients, and both forget the kernels.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Of an ordinary convolution's shape; it starts as torch starts a linear layer of one input."""
        super().__init__(**{name: getattr(conv, name) for name in SHAPE}, bias=False, device="meta")
        self.kernel_shape, entries = conv.weight.shape, conv.weight.numel()
        self.weight = nn.Parameter(torch.empty(entries, 1).uniform_(-1, 1))
        self.bias = nn.Parameter(torch.empty(entries).uniform_(-1, 1))
        self.encoding = 0.0
        self._kept: dict[tuple, tuple] = {}  # by encoding and layout; copies share it

    def at(self, scale: Any) -> "GeneratedConv2d":
        new = with_children(self, {})
        new.encoding = scale.encoding
        return new

    def forward(self, x: Tensor) -> Tensor:
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        return self._conv_forward(x, self.kernel(layout), None)

    def kernel(self, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept.clear()
            return self._made(weight, bias)
        kept = self._kept.get((self.encoding, layout))
        if kept and kept[0] is weight and kept[1] is bias and kept[2] == _stamp(weight, bias):
            return kept[3]
        made = self._made(weight, bias).contiguous(memory_format=layout)
        if not (type(weight) is type(bias) is nn.Parameter) or weight.is_inference() or bias.is_inference():
            return made
        if len(self._kept) >= MOST:
            self._kept.pop(next(iter(list(self._kept)), None), None)
        made = nn.Parameter(made)  # autocast keeps its 16-bit copy of parameters alone
        self._kept[self.encoding, layout] = weight, bias, _stamp(weight, bias), made
        return made

    def _made(self, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.add(bias, weight.flatten(), alpha=self.encoding).view(self.kernel_shape)

    def train(self, mode: bool = True) -> "GeneratedConv2d":
        if mode != self.training:
            self._kept.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GeneratedConv2d":
        self._kept.clear()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def plain(self) -> nn.Conv2d:
        layer = nn.Conv2d(**{name: getattr(self, name) for name in SHAPE}, bias=False, device="meta")
        layer.weight = nn.Parameter(self.kernel().detach().clone())
        return layer


def _stamp(weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    return weight._version, bias._version, weight.data_ptr(), bias.data_ptr()


class NormOfBranch(nn.Module):
    """A norm of each branch's own: `bn_0`, `bn_1`, …"""

    def __init__(self, norm: nn.BatchNorm2d, branches: int) -> None:
        super().__init__()
        for branch in range(branches):
            self.add_module(f"bn_{branch}", nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum))

    def at(self, scale: Any) -> nn.Module:
        norms = [self._modules[f"bn_{branch}"] for branch in scale.branches]
        return norms[0] if len(norms) == 1 else MeanNorm.of(norms)


def _mean(name: str) -> property:
    def mean(norm: "MeanNorm") -> Tensor:
        own = norm._buffers.get(name)
        return torch.stack([getattr(one, name) for one in norm.norms]).mean(0) if own is None else own

    return property(mean)


class MeanNorm(nn.BatchNorm2d):
    """The mean of several norms, for resolutions between trained ones: of their weights, and of their statistics.

    Training normalises by the batch and records nothing.
    """

    weight, bias, running_mean, running_var = map(_mean, ("weight", "bias", "running_mean", "running_var"))

    @classmethod
    def of(cls, norms: list[nn.Module]) -> "MeanNorm":
        new = with_children(norms[0], {})
        new.__class__ = cls
        new.__dict__.update(norms=norms, _parameters={}, _buffers={"num_batches_tracked": None})
        return new

    def plain(self) -> nn.BatchNorm2d:
        layer = nn.BatchNorm2d(self.num_features, self.eps, self.momentum).to(self.weight)
        names = ("weight", "bias", "running_mean", "running_var")
        layer.load_state_dict({name: getattr(self, name).detach() for name in names}, strict=False)
        return layer


class Classifier(nn.Linear):
    """In float32 whatever the precision of the rest."""

    @classmethod
    def of(cls, layer: nn.Linear) -> "Classifier":
        new = with_children(layer, {})
        new.__class__ = cls
        return new

    def forward(self, x: Tensor) -> Tensor:
        return in_float32(super().forward, x)

    def plain(self) -> nn.Linear:
        new = with_children(self, {})
        new.__class__ = nn.Linear
        return new


class Shared(nn.Module):
    """A layer that all branches share."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def at(self, scale: Any) -> nn.Module:
        return self.module
