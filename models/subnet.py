"""Sub-networks as first-class things: their names, their cost, and each as an ordinary network of its own."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .adaptive import AdaptiveDepth, Mandatory, Stage


class Cost(NamedTuple):
    """What one image costs: multiply-accumulates of convolutions and matrix products; parameters that are used."""

    macs: int
    parameters: int


def subnet_name(skip: Sequence[bool]) -> str:
    """(True, True, False, False) → "TTFF"."""
    return "".join("T" if flag else "F" for flag in skip)


def cost(model: AdaptiveDepth, skip: Sequence[bool] | None = None, image_size: int | None = None) -> Cost:
    """The cost of a sub-network on a square image (by default the network's own size, or 224). Computes no output."""
    plain = _plain_view(model, model.checked(skip))
    size = image_size or getattr(model, "image_size", 224)
    meta = {name: torch.empty_like(p, device="meta", requires_grad=True) for name, p in plain.named_parameters()}
    meta |= {name: torch.empty_like(b, device="meta") for name, b in plain.named_buffers()}
    images = torch.empty(2, 3, size, size, device="meta", dtype=next(plain.parameters()).dtype)
    # with gradients on, attention runs as matrix products that are counted, not as one fused operator that is not;
    # two images, since batch norm refuses one in training mode
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(plain, meta, (images,))
    return Cost(macs=counter.get_total_flops() // 4, parameters=sum(p.numel() for p in plain.parameters()))


def extract(model: AdaptiveDepth, skip: Sequence[bool] | None = None) -> nn.Module:
    """A sub-network as a network of torchvision's own class, with a copy of only the weights that it uses."""
    return copy.deepcopy(_plain_view(model, model.checked(skip)))


def _plain_view(model: AdaptiveDepth, skip: tuple[bool, ...]) -> nn.Module:
    """A sub-network as an ordinary network that shares the model's weights."""
    flag_of = {module: flag for path, flag in zip(model._paths(), skip, strict=True) for module in path}
    flag_of |= dict.fromkeys(model._tail(), skip[-1])

    def rebuild(module: nn.Module) -> nn.Module | None:
        if module in flag_of:
            return _resolve(module, flag_of[module])
        if not any(m in flag_of for m in module.modules()):
            return module
        return with_children(module, {name: rebuild(child) for name, child in module.named_children()})

    plain = rebuild(model)
    plain.__class__ = type(model).__bases__[1]
    model._tidy_plain(plain)
    return plain


def _resolve(module: nn.Module, skip: bool) -> nn.Module | None:
    """A module of a path without its choice: the norms of one kind alone; None if it is skipped."""
    if not isinstance(module, Mandatory):
        return None if skip else module
    children = {}
    for name, child in module.named_children():
        if name.endswith("_skip"):
            continue
        chosen = getattr(module, f"{name}_skip", child) if skip else child
        inner = isinstance(chosen, Mandatory) or isinstance(module, Stage)
        children[name] = _resolve(chosen, skip) if inner else chosen
    plain = with_children(module, children)
    plain.__class__ = module.plain
    return plain


def with_children(module: nn.Module, children: dict[str, nn.Module | None]) -> nn.Module:
    """A copy of a module that shares its tensors and has other children (without those that are None)."""
    new = copy.copy(module)
    new.__dict__["_modules"] = {name: child for name, child in children.items() if child is not None}
    return new
