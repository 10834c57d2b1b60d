"""Modules as they run under a flag: the two norms of a mandatory block, and the copies that hold one of them.

`select(module, skip)` gives a shallow copy that shares every tensor; nothing in this file knows what a network is.
"""

import copy
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

BATCH_NORM = nn.modules.batchnorm._BatchNorm
NORMS = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm)


class Stage(nn.Sequential):
    """The blocks of a residual stage. The first half of them, rounded up, is mandatory."""


def select(
    module: nn.Module,
    skip: bool,
    copies: list[tuple[nn.Module, nn.Module]] | None = None,
    instead: Mapping[nn.Module, nn.Module] = {},
) -> nn.Module:
    """The module as it runs under the flag. What holds no choice is given as it is.

    A child `…_skip` stands in for its namesake under the flag, and a module of `instead` for its key. In `copies` pairs
    (copy, its original) are noted.
    """
    if module in instead:
        return instead[module]
    parts = module._modules
    children: dict[str, nn.Module | None] = {}
    for name, child in parts.items():
        if name.endswith("_skip") and name.removesuffix("_skip") in parts:
            continue
        runs = parts.get(f"{name}_skip", child) if skip else child
        children[name] = None if runs is None else select(runs, skip, copies, instead)
    if skip and isinstance(module, Stage):
        children = dict(itertools.islice(children.items(), math.ceil(len(children) / 2)))
    if children == parts:
        return module
    selected = with_children(module, children)
    if copies is not None:
        copies.append((selected, module))
    return selected


def with_children(module: nn.Module, children: dict[str, nn.Module | None]) -> nn.Module:
    """A copy of a module that shares its tensors and hooks, and has other children."""
    new = object.__new__(type(module))  # copy.copy would run the constructor of what FSDP makes of a module
    new.__dict__.update(module.__dict__, _modules=children)
    return new


def noting(view: nn.Module, names: Iterable[str]) -> tuple[nn.Module, list[Tensor]]:
    """A copy of a view in which these modules write down what they give, and the list into which they write it."""
    noted, outputs = with_children(view, dict(view._modules)), []
    for name in names:
        holder = noted
        for key in name.split("."):
            child = with_children(holder._modules[key], dict(holder._modules[key]._modules))
            holder._modules[key] = child
            holder = child
        holder.__dict__["_forward_hooks"] = OrderedDict(holder._forward_hooks)
        holder.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    return noted, outputs


def rebuild(module: nn.Module, chosen: Mapping[nn.Module, nn.Module | None]) -> nn.Module | None:
    """A copy of a module with others in the places of those that are keys here, or without them: None."""
    if module in chosen or not module._modules:
        return chosen.get(module, module)
    children = {name: rebuild(child, chosen) for name, child in module.named_children()}
    new = with_children(module, {name: child for name, child in children.items() if child is not None})
    if isinstance(module, Stage):
        new.__class__ = nn.Sequential
    return new


def with_buffers(norm: nn.Module, buffers: dict[str, Tensor], estimating: bool) -> nn.Module:
    """A copy of a norm that shares its weights and evaluates by these running statistics, or makes them the batch's."""
    new = with_children(norm, norm._modules)  # some have an activation
    new.__dict__.update(_buffers=buffers, training=estimating)
    if estimating:
        new.momentum = 1.0
        if isinstance(new, nn.SyncBatchNorm):
            new.__class__ = nn.BatchNorm2d  # a process need not wait for the others, which may have fewer batches
    return new


def add_twins(module: nn.Module, switchable_norms: bool, leave: Sequence[str]) -> None:
    """Give each norm in a mandatory module its twin `…_skip`, except under the names in `leave`.

    Stochastic depth gets an identity: the base-net is trained without it.
    """
    for name, child in list(module.named_children()):
        if name in leave:
            continue
        if isinstance(child, NORMS) and switchable_norms:
            module.add_module(f"{name}_skip", copy.deepcopy(child))
        elif isinstance(child, StochasticDepth):
            module.add_module(f"{name}_skip", nn.Identity())
        else:
            add_twins(child, switchable_norms, leave)


def start_twins(network: nn.Module) -> None:
    """Each second norm becomes a copy of the first."""
    for module in network.modules():
        for name, twin in module.named_children():
            if name.endswith("_skip"):
                twin.load_state_dict(getattr(module, name.removesuffix("_skip")).state_dict())
