"""The pattern of an adaptive-depth network, stated once; every family stands on it.

A residual stage is split into two consecutive sub-paths: the first blocks are **mandatory** (they learn new features),
the others are **skippable** (they only refine them). `skip` is one bool per stage: True leaves the stage's skippable
blocks out. All False is the **super-net**, all True the **base-net**; N stages hold 2^N networks in one set of weights.

A mandatory block owns two sets of norms: `bn1` runs with the whole stage, `bn1_skip` when its second half is skipped.
`skip` is a value handed down from call to call. No module changes in a forward pass, so threads, DDP, EMA and
`torch.compile` need no care.
"""

import copy
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
Skip = tuple[bool, ...]
Entered = tuple[Tensor, ...]  # the input of a stage, and what its first block's `entry` made of it


def mandatory_count(length: int) -> int:
    """How many of a stage's blocks are mandatory: half, rounded up; one at least, and not the last of several."""
    return max(1, min(length - 1, math.ceil(length / 2)))


class Mandatory(nn.Module):
    """Put before a torchvision class: its own forward, run with the module's norms or, if `skip`, its skip norms.

    `entry` names the parts that run on the block's input itself. Those without a twin do the same under both flags, so
    `enter` may run them once for both, and `forward` then takes what it made in the place of the input.
    """

    entry: ClassVar[tuple[str, ...]] = ()
    adaptive_class_of: ClassVar[dict[type, type]] = {}
    plain: type[nn.Module]

    def __init_subclass__(cls) -> None:
        cls.plain = cls.__bases__[1]
        cls.adaptive_class_of.setdefault(cls.plain, cls)

    def forward(self, x: Tensor | Entered, skip: bool = False) -> Tensor:
        if isinstance(x, tuple):
            x, *made = x
            return self.plain.forward(View(self, skip, dict(zip(self.entry_parts(), made, strict=True))), x)
        return self.plain.forward(View(self, skip) if skip else self, x)

    def entry_parts(self) -> dict[str, nn.Module]:
        """The parts that `entry` names, but for those that know `skip`."""
        parts = {name: getattr(self, name) for name in self.entry if f"{name}_skip" not in self._modules}
        return {name: part for name, part in parts.items() if part is not None and not isinstance(part, Mandatory)}

    def enter(self, x: Tensor) -> Tensor | Entered:
        made = tuple(part(x) for part in self.entry_parts().values())
        return (x, *made) if made else x


class View:
    """A mandatory module as its own forward sees it: under `skip`, `name` means `name_skip` where there is one.

    A part whose output is `made` already gives that.
    """

    def __init__(self, module: nn.Module, skip: bool, made: dict[str, Tensor] | None = None) -> None:
        self._module = module
        self._skip = skip
        self._made = made or {}

    def __getattr__(self, name: str) -> Any:
        if name in self._made:
            return lambda _: self._made[name]
        children = self._module._modules
        if self._skip and name + "_skip" in children:
            return children[name + "_skip"]
        child = getattr(self._module, name)
        return partial(child, skip=self._skip) if isinstance(child, Mandatory) else child


class MandatorySequential(Mandatory, nn.Sequential):
    """A chain inside a mandatory block. The twins that lie among its entries are not steps of their own."""

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        view = View(self, skip)
        for name in self._modules:
            if not name.endswith("_skip"):
                x = getattr(view, name)(x)
        return x


class Stage(Mandatory, nn.Sequential):
    """A stage: mandatory blocks take `skip`, the others run only without it. It is part of every network itself."""

    def forward(self, x: Tensor | Entered, skip: bool = False) -> Tensor:
        return run(self, x, skip)

    def entry_parts(self) -> dict[str, nn.Module]:
        return self[0].entry_parts()


def run(path: Iterable[nn.Module], x: Tensor | Entered, skip: bool) -> Tensor:
    """What skipping means."""
    for module in path:
        if isinstance(module, Mandatory):
            x = module(x, skip)
        elif not skip:
            x = module(x)
    return x


def make_mandatory(module: nn.Module, switchable_norms: bool = True, leave: Sequence[str] = ()) -> nn.Module:
    """Turn a torchvision module, in place, into a mandatory one: its norms get twins `…_skip`, except under `leave`.

    Stochastic depth gets an identity as its twin: the base-net is trained without it.
    """
    for name, child in list(module.named_children()):
        if name in leave:
            continue
        if isinstance(child, NORMS):
            if switchable_norms:
                module.add_module(f"{name}_skip", copy.deepcopy(child))
        elif isinstance(child, StochasticDepth):
            module.add_module(f"{name}_skip", nn.Identity())
        elif any(isinstance(m, NORMS) for m in child.modules()):
            make_mandatory(child, switchable_norms, leave)
    module.__class__ = Mandatory.adaptive_class_of[type(module)]
    return module


def split(blocks: nn.Sequential, switchable_norms: bool = True, leave: Sequence[str] = ()) -> Stage:
    """Split a residual stage into its mandatory and its skippable sub-path. Names in the state dict stay."""
    named = OrderedDict(blocks.named_children())
    for block in list(named.values())[: mandatory_count(len(named))]:
        make_mandatory(block, switchable_norms, leave)
    return Stage(named)


class AdaptiveDepth(nn.Module):
    """Put before a torchvision network. A family says what is before, in and behind its stages; the rest is here."""

    def _embed(self, x: Tensor) -> Tensor:
        """Image → what the first stage takes. Knows no `skip`."""
        raise NotImplementedError

    def _paths(self) -> Sequence[Sequence[nn.Module]]:
        """For each flag of `skip` the modules that follow it, in order. They end at the stage's output h^s."""
        raise NotImplementedError

    def _classify(self, x: Tensor, skip: bool) -> Tensor:
        """The last stage's output → logits, under the last flag."""
        raise NotImplementedError

    def _tail(self) -> Sequence[nn.Module]:
        """Mandatory modules behind the last stage, which follow the last flag."""
        return ()

    def _tidy_plain(self, plain: nn.Module) -> None:
        """Give a sub-network, already of torchvision's class, torchvision's own order of modules."""

    def _feature_map(self, x: Tensor) -> Tensor:
        """A stage's output h^s as B, C, H, W."""
        return x

    def _enter(self, s: int, x: Tensor) -> Tensor | Entered:
        """What stage s does under either flag, for those who run it under both."""
        return self._paths()[s][0].enter(x)

    def _run_path(self, s: int, skip: bool, x: Tensor | Entered) -> Tensor:
        return run(self._paths()[s], x, skip)

    @property
    def num_skippable_stages(self) -> int:
        return len(self._paths())

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
        self,
        x: Tensor | Entered,
        skip: Sequence[bool] | None = None,
        return_features: bool = False,
        embedded: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits of the sub-network that `skip` selects (None: the super-net); if asked for, also its h^1 … h^N.

        `embedded`: x is not images but what `embed` made of them.
        """
        skip = self.checked(skip)
        if not embedded:
            x = self._embed(x)
        elif len(x) == 1:
            (x,) = x
        features = []
        for s, flag in enumerate(skip):
            x = self._run_path(s, flag, x)
            if return_features:
                features.append(self._feature_map(x))
        logits = self._classify(x, skip[-1])
        return (logits, features) if return_features else logits

    def embed(self, x: Tensor, networks: int = 1) -> Entered:
        """What all sub-networks compute first. In training, running statistics move as if `networks` had run it."""
        norms = self._embedding_norms() if self.training and networks > 1 else []
        before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
        x = self._enter(0, self._embed(x))
        for norm, old in zip(norms, before, strict=True):
            # every run on the same batch leaves 1 - momentum of the distance to that batch's statistics
            further = (1 - (1 - norm.momentum) ** networks) / norm.momentum
            for value, start in zip((norm.running_mean, norm.running_var), old, strict=True):
                value.data.copy_(start.lerp(value, further))  # .data: the backward pass does not read them in training
            norm.num_batches_tracked += networks - 1
        return x if isinstance(x, tuple) else (x,)

    def _embedding_norms(self) -> list[nn.Module]:
        """The batch norms that `embed` runs."""
        behind = {part for path in (*self._paths(), self._tail()) for module in path for part in module.modules()}
        entered = {part for module in self._paths()[0][0].entry_parts().values() for part in module.modules()}
        before = [module for module in self.modules() if module not in behind or module in entered]
        return [module for module in before if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def forward_all(self, x: Tensor, subnets: Sequence[Sequence[bool]] | None = None) -> dict[Skip, Tensor]:
        """Logits of many sub-networks (None: all of them), walking the tree of stages: what several share runs once."""
        wanted = self.subnets if subnets is None else [self.checked(skip) for skip in subnets]
        prefixes = {skip[:s] for skip in wanted for s in range(self.num_skippable_stages + 1)}
        logits: dict[Skip, Tensor] = {}

        def walk(prefix: Skip, x: Tensor) -> None:
            if len(prefix) == self.num_skippable_stages:
                logits[prefix] = self._classify(x, prefix[-1])
                return
            s = len(prefix)
            flags = [flag for flag in (False, True) if (*prefix, flag) in prefixes]
            entered = self._enter(s, x) if len(flags) == 2 else x
            for flag in flags:
                walk((*prefix, flag), self._run_path(s, flag, entered))

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

    # A bridge until this page is rewritten: three functions of other pages under the names of the contract.

    def name(self, subnet: Skip) -> str:
        from .subnet import subnet_name

        return subnet_name(subnet)

    def parse(self, word: str) -> Skip:
        from .skip import parse_skips

        return parse_skips(list(word) if set(word) <= {"T", "F"} else [word], self.num_skippable_stages)[0]

    def cost(self, subnet: Skip, image_size: int | None = None) -> Any:
        from .subnet import cost

        return cost(self, subnet, image_size)

    def compile(self, **options: Any) -> None:
        """Compile every sub-path once, in place; all 2^N sub-networks then run compiled.

        `torch.compile(model)` also works, with one graph per sub-network; but it keeps at most 8 variants of one code
        object and runs the rest uncompiled. Here each of the 2N sub-paths has a code object of its own, so that no
        limit is met and the stages' different shapes are not taken for one dynamic shape.
        """
        compiled = {
            (s, flag): torch.compile(_path_function(self._paths()[s], flag, f"stage_{s}_{flag}"), **options)
            for s in range(self.num_skippable_stages)
            for flag in (False, True)
        }
        self._run_path = partial(_run_compiled, compiled)
        self._enter = _not_entered  # a graph of the whole sub-path is worth more
        self._embed = torch.compile(self._embed, **options)
        self._classify = torch.compile(self._classify, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are not compiled."""
        compiled = ("_run_path", "_enter", "_embed", "_classify")
        return {name: value for name, value in self.__dict__.items() if name not in compiled}


def _path_function(path: Sequence[nn.Module], skip: bool, name: str) -> Any:
    def function(x: Tensor) -> Tensor:
        return run(path, x, skip)

    function.__code__ = function.__code__.replace(co_name=name)
    return function


def _run_compiled(compiled: dict[tuple[int, bool], Any], s: int, skip: bool, x: Tensor) -> Tensor:
    return compiled[s, skip](x)


def _not_entered(s: int, x: Tensor) -> Tensor:
    return x
