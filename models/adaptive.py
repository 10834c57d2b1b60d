"""The pattern of an adaptive-depth network, stated once; every family stands on it.

A residual stage is split into two consecutive sub-paths: its first blocks are **mandatory** (they learn new features),
the others **skippable** (they only refine them). `skip` is one bool per stage: True leaves the stage's skippable blocks
out. All False is the **super-net**, all True the **base-net**; N stages hold 2^N networks in one set of weights.

A mandatory block owns two sets of norms: `bn1` runs with the whole stage, `bn1_skip` when its second half is skipped.
`select(module, skip)` gives the module as it runs under that flag: a shallow copy that holds one set of norms and
shares every tensor. So a sub-path is an ordinary chain of ordinary modules, whose forward is torchvision's. `skip` is a
value handed down: no module changes in a forward pass, and threads, DDP, EMA and `torch.compile` need no care.
"""

import copy
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from . import skip as skips
from .subnet import ManyNetworks

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
Skip = tuple[bool, ...]


def mandatory_count(length: int) -> int:
    """How many of a stage's blocks are mandatory: half, rounded up; one at least, and not the last of several."""
    return max(1, min(length - 1, math.ceil(length / 2)))


class Stage(nn.Sequential):
    """The blocks of a residual stage, by the names that they have in the state dict."""

    def __init__(self, blocks: nn.Sequential | OrderedDict[str, nn.Module]) -> None:
        super().__init__(OrderedDict(blocks.named_children() if isinstance(blocks, nn.Sequential) else blocks))


def under(module: nn.Module, skip: bool) -> list[nn.Module]:
    """The blocks that run: those of a stage without, under `skip`, its skippable ones; else the module itself."""
    if not isinstance(module, Stage):
        return [module]
    return list(module)[: mandatory_count(len(module)) if skip else None]


def add_twins(module: nn.Module, switchable_norms: bool = True, leave: Sequence[str] = ()) -> None:
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


def twins(module: nn.Module) -> dict[str, nn.Module]:
    """Those of a module's own children: by the name of the child that each stands in for."""
    parts = module._modules
    return {name: parts[f"{name}_skip"] for name in parts if f"{name}_skip" in parts}


Copies = list[tuple[nn.Module, nn.Module]]  # (copy, what it was made of)


def select(module: nn.Module, skip: bool, copies: Copies | None = None) -> nn.Module:
    """The module as it runs under the flag. What holds no choice is given as it is; copies are noted in `copies`."""
    twin = twins(module)
    children = {
        name: child if child is None else select(twin.get(name, child) if skip else child, skip, copies)
        for name, child in module._modules.items()
        if name.removesuffix("_skip") == name or name.removesuffix("_skip") not in twin
    }
    if skip and isinstance(module, Stage):
        children = dict(itertools.islice(children.items(), mandatory_count(len(children))))
    if children == module._modules:
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


def in_float32(head: nn.Module, x: Tensor) -> Tensor:
    """Logits in float32 under autocast too: of a thousand classes in 16 bits, several are equal."""
    if not torch.is_autocast_enabled(x.device.type):
        return head(x)
    with torch.autocast(x.device.type, enabled=False):
        return head(x.float())


class Selected(NamedTuple):
    """A network's sub-paths as they run, and what they were made of."""

    chains: list[tuple[list[nn.Module], list[nn.Module]]]  # per flag of `skip`, then of the tail: as a whole, skipped
    copies: Copies
    parts: list[tuple[nn.Module, dict[str, nn.Module | None]]]  # the children that each module had


class AdaptiveDepth(ManyNetworks):
    """Put before a torchvision network. A family says what is before, in and behind its stages; the rest is here."""

    settings: ClassVar[tuple[str, ...]] = ()  # which of the command's settings of networks this family knows

    def _embed(self, x: Tensor) -> Tensor:
        """Image → what the first path takes. Knows no `skip`."""
        raise NotImplementedError

    def _paths(self) -> Sequence[Sequence[nn.Module]]:
        """For each flag of `skip` the modules that follow it, in order. They end at the stage's output h^s."""
        raise NotImplementedError

    def _tail(self) -> Sequence[nn.Module]:
        """Modules behind the last stage that follow the last flag."""
        return ()

    def _classify(self, x: Tensor) -> Tensor:
        """What comes out last → logits."""
        raise NotImplementedError

    def _feature_map(self, x: Tensor) -> Tensor:
        """A stage's output h^s as B, C, H, W."""
        return x

    def _tidy_plain(self, plain: nn.Module) -> None:
        """Give a sub-network, already of torchvision's class, torchvision's own order of modules."""

    def adapt(self, switchable_norms: bool = True, leave: Sequence[str] = ()) -> None:
        """What a family's constructor does last: mandatory modules get their twins, sub-paths are made."""
        for module in itertools.chain(*self._paths(), self._tail()):
            for block in under(module, skip=True):
                add_twins(block, switchable_norms, leave)
        self._select()

    def _select(self) -> None:
        copies: Copies = []
        chains = [
            ([select(m, False, copies) for m in path], [select(m, True, copies) for m in path])
            for path in (*self._paths(), self._tail())
        ]
        self._selected = Selected(chains, copies, [(m, dict(m._modules)) for m in self.modules() if m._modules])

    def _follow_changes(self) -> None:
        """Modules may have been replaced since (SyncBN, wrappers), or have gone from training to evaluation alone."""
        if any(module._modules != children for module, children in self._selected.parts):
            self._select()
        for selected, module in self._selected.copies:
            selected.__dict__["training"] = module.training

    def _run(self, s: int, skip: bool, x: Tensor) -> Tensor:
        for module in self._selected.chains[s][skip]:
            x = module(x)
        return x

    @property
    def num_skippable_stages(self) -> int:
        return len(self._selected.chains) - 1

    @property
    def super_net(self) -> Skip:
        return (False,) * self.num_skippable_stages

    @property
    def base_net(self) -> Skip:
        return (True,) * self.num_skippable_stages

    @property
    def subnets(self) -> list[Skip]:
        """All 2^N, from the super-net to the base-net."""
        return list(itertools.product((False, True), repeat=self.num_skippable_stages))

    def forward(
        self, x: Tensor, skip: Sequence[bool] | None = None, return_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits of the sub-network that `skip` selects (None: the super-net); if asked for, also its h^1 … h^N."""
        if not torch.compiler.is_compiling():
            self._follow_changes()
        skip = self.checked(skip)
        x = self._embed(x)
        features = []
        for s, flag in enumerate(skip):
            x = self._run(s, flag, x)
            if return_features:
                features.append(self._feature_map(x))
        logits = self._classify(self._run(len(skip), skip[-1], x))
        return (logits, features) if return_features else logits

    def forward_all(self, x: Tensor, subnets: Sequence[Sequence[bool]] | None = None) -> dict[Skip, Tensor]:
        """Walks the tree of stages: what several sub-networks share runs once."""
        self._follow_changes()
        wanted = self.subnets if subnets is None else [self.checked(skip) for skip in subnets]
        prefixes = {skip[:s] for skip in wanted for s in range(1, self.num_skippable_stages + 1)}
        logits: dict[Skip, Tensor] = {}

        def walk(prefix: Skip, x: Tensor) -> None:
            if len(prefix) == self.num_skippable_stages:
                logits[prefix] = self._classify(self._run(len(prefix), prefix[-1], x))
                return
            for flag in (False, True):
                if (*prefix, flag) in prefixes:
                    walk((*prefix, flag), self._run(len(prefix), flag, x))

        walk((), self._embed(x))
        return {skip: logits[skip] for skip in wanted}

    def checked(self, skip: Sequence[bool] | None) -> Skip:
        """`skip` as a tuple, or a ValueError that says what was expected."""
        if skip is None:
            return self.super_net
        n = self.num_skippable_stages
        if not isinstance(skip, (tuple, list)) or len(skip) != n or not all(isinstance(flag, bool) for flag in skip):
            raise ValueError(
                f"skip must be a tuple or list of {n} bools, one per stage (True skips its second half), "
                f"like {self.base_net} for the base-net; got {skip!r}"
            )
        return tuple(skip)

    def name(self, skip: Sequence[bool]) -> str:
        return skips.name(skip)

    def parse(self, word: str) -> Skip:
        return skips.parse(word, self.num_skippable_stages)

    def view(self, skip: Sequence[bool] | None = None) -> nn.Module:
        flags = self.checked(skip)
        chosen: dict[nn.Module, nn.Module | None] = {}
        for path, flag in zip((*self._paths(), self._tail()), (*flags, flags[-1]), strict=True):
            for module in path:
                chosen |= dict.fromkeys(under(module, skip=False))
                chosen |= {block: select(block, flag) for block in under(module, flag)}

        def rebuild(module: nn.Module) -> nn.Module | None:
            if module in chosen or not module._modules:
                return chosen.get(module, module)
            children = {name: rebuild(child) for name, child in module.named_children()}
            new = with_children(module, {name: child for name, child in children.items() if child is not None})
            if isinstance(module, Stage):
                new.__class__ = nn.Sequential
            return new

        plain = rebuild(self)
        lineage = type(self).__mro__
        plain.__class__ = lineage[lineage.index(ManyNetworks) + 1]
        plain.__dict__.pop("_selected")
        self._tidy_plain(plain)
        return plain

    def compile(self, **options: Any) -> None:
        """Compile every sub-path once, in place; all 2^N sub-networks then run compiled.

        `torch.compile(model)` also works, with a graph per sub-network, but keeps at most 8 variants of a code object.
        Here each sub-path has a code object of its own: no limit is met, and the stages' different shapes are not taken
        for one dynamic shape.
        """
        compiled = {
            (s, flag): torch.compile(self._path_function(s, flag), **options)
            for s in range(len(self._selected.chains))
            for flag in (False, True)
            if self._selected.chains[s][flag]
        }
        self._run = partial(_run_compiled, compiled)
        self._embed = torch.compile(self._embed, **options)
        self._classify = torch.compile(self._classify, **options)

    def _path_function(self, s: int, skip: bool) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            for module in self._selected.chains[s][skip]:
                x = module(x)
            return x

        function.__code__ = function.__code__.replace(co_name=f"path_{s}_{skip}")
        return function

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are not compiled, and make sub-paths of their own."""
        own = ("_run", "_embed", "_classify", "_selected")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._select()


def _run_compiled(compiled: dict[tuple[int, bool], Any], s: int, skip: bool, x: Tensor) -> Tensor:
    return compiled[s, skip](x) if (s, skip) in compiled else x  # without a tail nothing runs there
