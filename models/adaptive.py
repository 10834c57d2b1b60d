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
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from . import skip as skips
from .skip import Skip
from .subnet import ManyNetworks

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Stage(nn.Sequential):
    """The blocks of a residual stage. The first half of them, rounded up, is mandatory."""


def select(module: nn.Module, skip: bool, copies: list[tuple[nn.Module, nn.Module]] | None = None) -> nn.Module:
    """The module as it runs under the flag. What holds no choice is given as it is.

    A child `…_skip` stands in for its namesake under the flag. In `copies` pairs (copy, its original) are noted.
    """
    parts = module._modules
    children = {
        name: child if child is None else select(parts.get(f"{name}_skip", child) if skip else child, skip, copies)
        for name, child in parts.items()
        if not (name.endswith("_skip") and name.removesuffix("_skip") in parts)
    }
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


class Selected(NamedTuple):
    """A network's sub-paths as they run, and what they were made of."""

    paths: list[tuple[nn.Sequential, nn.Sequential]]  # of each flag, then behind the stages: as a whole, skipped
    copies: list[tuple[nn.Module, nn.Module]]  # of modules, and their originals
    parts: list[tuple[nn.Module, dict[str, nn.Module | None]]]  # the children that each module had


MADE_HERE = ("_selected", "_run", "_embed", "_classify")  # a network's attributes that its copies make for themselves


class AdaptiveDepth(ManyNetworks):
    """Put before a torchvision network. A family says what is before, in and behind its stages; the rest is here."""

    settings: ClassVar[tuple[str, ...]] = ()  # which of the command's settings of networks this family knows

    def __init__(self, *args: Any, switchable_norms: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.switchable_norms = switchable_norms

    def _embed(self, x: Tensor) -> Tensor:
        """Image → what the body takes. Knows no `skip`."""
        return x

    def _body(self) -> Iterable[nn.Module]:
        """The modules that follow `skip`, in order. A flag is for a stage and what is before it; the last also for what
        is behind the last stage."""
        raise NotImplementedError

    def _classify(self, x: Tensor) -> Tensor:
        """What comes out last → logits."""
        raise NotImplementedError

    def _feature_map(self, x: Tensor) -> Tensor:
        """A stage's output h^s as B, C, H, W."""
        return x

    def _tidy_plain(self, plain: nn.Module) -> None:
        """Give a sub-network, already of torchvision's class, torchvision's own order of modules."""

    def adapt(self, leave: Sequence[str] = ()) -> None:
        """What a family's constructor does last: mandatory modules get their twins, sub-paths are made."""
        for module in self._body():
            add_twins(select(module, skip=True), self.switchable_norms, leave)
        self._select()

    def _by_flag(self) -> list[list[nn.Module]]:
        """The body, parted behind each stage."""
        paths = [[]]
        for module in self._body():
            paths[-1].append(module)
            if any(isinstance(part, Stage) for part in module.modules()):  # one may be wrapped
                paths.append([])
        return paths

    def _select(self) -> None:
        copies = []
        paths = [
            tuple(nn.Sequential(*(select(module, skip, copies) for module in path)) for skip in (False, True))
            for path in self._by_flag()
        ]
        self._selected = Selected(paths, copies, [(m, dict(m._modules)) for m in self.modules() if m._modules])

    def _follow_changes(self) -> None:
        """Modules may have been replaced since (SyncBN, wrappers), or have gone from training to evaluation alone."""
        if any(module._modules != children for module, children in self._selected.parts):
            self._select()
        for selected, module in self._selected.copies:
            selected.__dict__["training"] = module.training

    def _run(self, s: int, skip: bool, x: Tensor) -> Tensor:
        return self._selected.paths[s][skip](x)

    def _logits(self, skip: Skip, x: Tensor) -> Tensor:
        """In float32 under autocast too: of a thousand classes in 16 bits, several are equal."""
        x = self._run(len(skip), skip[-1], x)
        if not torch.is_autocast_enabled(x.device.type):
            return self._classify(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._classify(x.float())

    @property
    def num_skippable_stages(self) -> int:
        return len(self._selected.paths) - 1

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

    def name(self, skip: Sequence[bool]) -> str:
        return skips.name(skip)

    def parse(self, word: str) -> Skip:
        return skips.parse(word, self.num_skippable_stages)

    def _checked(self, skip: Sequence[bool] | None) -> Skip:
        return self.super_net if skip is None else skips.checked(skip, self.num_skippable_stages)

    def forward(
        self, x: Tensor, skip: Sequence[bool] | None = None, return_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits of the sub-network that `skip` selects (None: the super-net); if asked for, also its h^1 … h^N."""
        if not torch.compiler.is_compiling():
            self._follow_changes()
        skip = self._checked(skip)
        x = self._embed(x)
        features = []
        for s, flag in enumerate(skip):
            x = self._run(s, flag, x)
            if return_features:
                features.append(self._feature_map(x))
        logits = self._logits(skip, x)
        return (logits, features) if return_features else logits

    def forward_all(self, x: Tensor, subnets: Sequence[Sequence[bool]] | None = None) -> dict[Skip, Tensor]:
        """Walks the tree of stages: what several sub-networks share runs once."""
        self._follow_changes()
        wanted = self.subnets if subnets is None else [self._checked(skip) for skip in subnets]
        outputs, before = [self._embed(x)], ()  # of the stages of the sub-network before
        logits: dict[Skip, Tensor] = {}
        for skip in sorted(set(wanted)):
            for s, flag in enumerate(skip):
                if skip[: s + 1] != before[: s + 1]:
                    del outputs[s + 1 :]
                    outputs.append(self._run(s, flag, outputs[s]))
            logits[skip] = self._logits(skip, outputs[-1])
            before = skip
        return {skip: logits[skip] for skip in wanted}

    def view(self, skip: Sequence[bool] | None = None) -> nn.Module:
        flags = self._checked(skip)
        chosen: dict[nn.Module, nn.Module | None] = {}  # None: left out
        for path, flag in zip(self._by_flag(), (*flags, flags[-1]), strict=True):
            for module in path:
                runs = select(module, flag)
                chosen |= itertools.zip_longest(module, runs) if isinstance(module, Stage) else {module: runs}

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
        for name in MADE_HERE:
            plain.__dict__.pop(name, None)
        self._tidy_plain(plain)
        return plain

    def compile(self, **options: Any) -> None:
        """Compile every sub-path once, in place; all 2^N sub-networks then run compiled.

        `torch.compile(model)` also works, with a graph per sub-network, but keeps at most 8 variants of a code object.
        Here each sub-path has a code object of its own: no limit is met, and the stages' different shapes are not taken
        for one dynamic shape.
        """
        compiled = {}
        for s, flag in itertools.product(range(self.num_skippable_stages + 1), (False, True)):

            def path(x: Tensor, s: int = s, flag: bool = flag) -> Tensor:
                return self._selected.paths[s][flag](x)

            path.__code__ = path.__code__.replace(co_name=f"path_{s}_{flag}")
            compiled[s, flag] = torch.compile(path, **options)
        self._run = lambda s, skip, x: compiled[s, skip](x)
        self._embed = torch.compile(self._embed, **options)
        self._classify = torch.compile(self._classify, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are not compiled, and make sub-paths of their own."""
        return {name: value for name, value in self.__dict__.items() if name not in MADE_HERE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._select()
