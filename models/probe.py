"""The residual stages of an ordinary network, found by running it once on an image.

Blocks are the modules of a list, or of a module that holds nothing but modules of one kind. A block refines if it keeps
the shape of what comes in and, without weights, gives it back, or an equal part of all of it: then what it computes is
added to what comes in. Of the blocks of one shape in a row those at the end that refine are skippable, but no more than
half of them all; the others are mandatory.
"""

import contextlib
import copy
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .selection import with_children

LISTS = (nn.Sequential, nn.ModuleList)
QUARTERS = 4  # into which a network of one stage, as transformers are, is divided


class Stage(NamedTuple):
    """The names of its blocks, in order. The first of them are mandatory."""

    blocks: tuple[str, ...]
    skippable: tuple[str, ...]


class Call(NamedTuple):
    """What a module got and gave when it first ran, and when that was."""

    inputs: tuple
    named_inputs: dict[str, Any]
    output: Any
    began: int
    ended: int

    @property
    def shape(self) -> torch.Size | None:
        return self.output.shape if isinstance(self.output, Tensor) else None


Calls = dict[str, Call]


@torch.no_grad()
def watch(network: nn.Module, image: Tensor) -> tuple[Tensor, Calls]:
    """Run a network in evaluation mode: what it gives, and the calls of its modules by name."""
    calls: Calls = {}
    waiting: dict[str, tuple] = {}
    clock = itertools.count()

    def begins(name: str, module: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
        # some work in place on what they get
        kept = tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)
        waiting.setdefault(name, (kept, named, next(clock)))

    def ends(name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        inputs, named, began = waiting[name]
        calls.setdefault(name, Call(inputs, named, output, began, next(clock)))

    with contextlib.ExitStack() as hooks:
        for name, module in network.named_modules():
            if name:
                hooks.enter_context(module.register_forward_pre_hook(partial(begins, name), with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(partial(ends, name)))
        return network.eval()(image), calls


@torch.no_grad()
def refines(block: nn.Module, call: Call) -> bool:
    """Whether a block gives back what it got when all its weights are 0.

    Perhaps through the ReLU behind the sum, or a part: a gate on the shortcut is then half open.
    """
    if not any(True for _ in block.parameters()) or not keeps_shape(call):
        return False
    left = (_without_weights(block, call, names) for names in (("weight", "bias"), ()))
    return any(_proportional(found, given) for found in left for given in (call.inputs[0], call.inputs[0].relu()))


def _without_weights(block: nn.Module, call: Call, names: tuple[str, ...]) -> Tensor:
    """What a block gives without its parameters of these names, or of all: others may scale what it adds to."""
    blank = copy.deepcopy(block).eval()
    for name, parameter in blank.named_parameters():
        if not names or name.rpartition(".")[2] in names:
            parameter.zero_()
    return _again(blank, call)


def _again(module: nn.Module, call: Call) -> Tensor:
    inputs = (value.clone() if isinstance(value, Tensor) else value for value in call.inputs)
    return module(*inputs, **call.named_inputs)


def _proportional(left: Tensor, given: Tensor) -> bool:
    share = (left * given).sum() / (given * given).sum()
    return bool(share > 0) and torch.allclose(left, share * given, rtol=1e-4, atol=1e-6)


def keeps_shape(call: Call) -> bool:
    first = call.inputs[0] if call.inputs else None
    return isinstance(first, Tensor) and call.shape == first.shape


def stages(network: nn.Module, calls: Calls) -> list[Stage]:
    """In the order in which they run."""
    found = list(_within(network, "", calls))
    blocks = found[0].blocks if len(found) == 1 else ()
    if len(blocks) >= QUARTERS and all(refines(network.get_submodule(name), calls[name]) for name in blocks):
        parts = min(QUARTERS, len(blocks) // 2)
        ends = [len(blocks) * part // parts for part in range(parts + 1)]
        found = [_halved(blocks[start:end], end - start) for start, end in itertools.pairwise(ends)]
    return sorted(found, key=lambda stage: calls[stage.blocks[0]].began)


def misfits(network: nn.Module, calls: Calls) -> set[str]:
    """The kinds of blocks in lists that keep the shape of what comes in but do not refine."""
    lists = [(name, module) for name, module in network.named_modules() if _is_list(module)]
    names = [f"{name}.{key}".lstrip(".") for name, module in lists for key, _ in module.named_children()]
    blocks = {name: network.get_submodule(name) for name in names if name in calls and keeps_shape(calls[name])}
    blocks = {name: block for name, block in blocks.items() if any(True for _ in block.children())}
    return {type(block).__name__ for name, block in blocks.items() if not refines(block, calls[name])}


def _is_list(module: nn.Module) -> bool:
    if isinstance(module, LISTS):
        return True
    kinds = {type(child) for child in module.children()}
    return len(kinds) == 1 and len(module._modules) > 1 and not issubclass(kinds.pop(), LISTS)


def _within(module: nn.Module, name: str, calls: Calls) -> Iterator[Stage]:
    """Of the module's own list, or else of those further inside."""
    children = {f"{name}.{key}".lstrip("."): child for key, child in module.named_children()}
    own = list(_of_list(children, calls)) if _is_list(module) and children.keys() <= calls.keys() else []
    own = own if isinstance(module, LISTS) or _runs_without(module, name, own, calls) else []
    yield from own
    used = {block for stage in own for block in stage.blocks}
    for key, child in children.items():
        if key not in used:
            yield from _within(child, key, calls)


@torch.no_grad()
def _runs_without(module: nn.Module, name: str, own: list[Stage], calls: Calls) -> bool:
    """Whether a module that is not known as a list runs what it holds as one: then it misses nothing."""
    if not own or name not in calls:
        return False
    skippable = {block.rpartition(".")[2] for stage in own for block in stage.skippable}
    shorter = with_children(module, {key: child for key, child in module._modules.items() if key not in skippable})
    try:
        return _again(shorter, calls[name]).shape == calls[name].shape
    except AttributeError:
        return False


def _of_list(children: dict[str, nn.Module], calls: Calls) -> Iterator[Stage]:
    group: list[str] = []
    for name in [*children, None]:
        if group and (name is None or calls[name].shape is None or calls[name].shape != calls[group[0]].shape):
            last = group[:0:-1]  # the first one is mandatory anyway
            refining = itertools.takewhile(lambda block: refines(children[block], calls[block]), last)
            stage = _halved(tuple(group), len(list(refining)))
            # what looks like a block may be a longer list of blocks
            inside = [inner for block in stage.skippable for inner in _within(children[block], block, calls)]
            if stage.skippable and all(len(inner.blocks) <= len(group) for inner in inside):
                yield stage
            group = []
        group.append(name)


def _halved(blocks: tuple[str, ...], refining: int) -> Stage:
    return Stage(blocks, blocks[len(blocks) - min(len(blocks) // 2, refining) :])
