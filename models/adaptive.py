"""The pattern of an adaptive-depth network, stated once; every family stands on it.

A residual stage is split into two consecutive sub-paths: its first blocks are **mandatory** (they learn new features),
the others **skippable** (they only refine them). `skip` is one bool per stage: True leaves the stage's skippable blocks
out. All False is the **super-net**, all True the **base-net**; N stages hold 2^N networks in one set of weights.

A mandatory block owns two sets of norms: `bn1` runs with the whole stage, `bn1_skip` when its second half is skipped.
`select(module, skip)` gives the module as it runs under that flag: a shallow copy that holds one set of norms and
shares every tensor. So a sub-path is an ordinary chain of ordinary modules, whose forward is torchvision's. `skip` is a
value handed down: no module changes in a forward pass, and threads, DDP, EMA and `torch.compile` need no care.

What has run so far follows from the flags so far: the 2^N networks are a tree of prefixes of `skip`. The empty one is
what comes before the stages; in what comes behind them, the last flag stands twice. A norm may have running statistics
of its own for each prefix (`calibration.py`); in evaluation a copy that holds these then runs instead of it.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from . import skip as skips
from .calibration import WithStatistics
from .selection import BATCH_NORM, Stage, add_twins, rebuild, select, with_buffers
from .skip import ByStage, Skip
from .subnet import in_float32, ordinary


class Selected(NamedTuple):
    """A network's sub-paths as they run, and what they were made of."""

    stages: int
    paths: dict[tuple, Callable[[Tensor], Tensor]]  # by (None, stage, flag), and by prefix with its own statistics
    copies: list[tuple[nn.Module, nn.Module]]  # and originals; norms with such statistics are not among them
    parts: list[tuple[nn.Module, dict[str, nn.Module | None]]]  # the children that each module had


class AdaptiveDepth(ByStage, WithStatistics):
    """Put before a torchvision network. A family says what is before, in and behind its stages; the rest is here."""

    settings: ClassVar[tuple[str, ...]] = ("switchable_norms",)  # of the command's; a family has more of its own
    made_here = ("_selected", "_run", "_classify")

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
        by_flag, copies = self._by_flag(), []

        def chain(stage: int, flag: bool, instead: dict[nn.Module, nn.Module]) -> nn.Sequential:
            return nn.Sequential(*(select(module, flag, copies, instead) for module in by_flag[stage - 1]))

        stages = itertools.product(range(1, len(by_flag) + 1), (False, True))
        paths = {(None, 0): self._embed, **{(None, *which): chain(*which, {}) for which in stages}}
        for prefix in self._statistics:
            instead = self._instead(prefix)
            if prefix:
                paths[prefix] = chain(len(prefix), prefix[-1], instead)
            else:
                paths[prefix] = select(self, False, copies, instead)._bare()._embed
        parts = [(module, dict(module._modules)) for module in self.modules() if module._modules]
        self._selected = Selected(len(by_flag) - 1, paths, copies, parts)

    def _instead(self, prefix: Skip) -> dict[nn.Module, nn.Module]:
        """The norms that have statistics of their own under this prefix, and what runs instead of them."""
        norms = {self.get_submodule(name): buffers for name, buffers in self._statistics.get(prefix, {}).items()}
        return {norm: with_buffers(norm, buffers, self._estimating) for norm, buffers in norms.items()}

    def _batch_norms(self, subnets: Sequence[Skip]) -> dict[Skip, dict[str, nn.Module]]:
        """By prefix. What is behind the last stage has its flag twice."""
        norms = {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, BATCH_NORM) and module.running_mean is not None
        }
        body = self._by_flag()
        in_body = {module for path in body for part in path for module in part.modules()}
        found = {}
        for prefix in dict.fromkeys(prefix for skip in subnets for prefix in skips.prefixes(skip)):
            if prefix:
                runs = {module for part in body[len(prefix) - 1] for module in select(part, prefix[-1]).modules()}
            else:
                runs = set(norms.values()) - in_body
            found[prefix] = {name: norm for name, norm in norms.items() if norm in runs}
        return found

    def _word(self, prefix: Skip) -> str:
        """The flags; what is behind the last stage has those of the stage."""
        return self.name(prefix[: self.num_skippable_stages])

    def _follow_changes(self) -> None:
        """Modules may have been replaced since (SyncBN, wrappers), or have gone from training to evaluation alone."""
        if any(module._modules != children for module, children in self._selected.parts):
            self._select()
        for selected, module in self._selected.copies:
            selected.__dict__["training"] = module.training

    def _path(self, prefix: Skip) -> tuple:
        """The key of what runs last under this prefix. Training uses, and changes, the statistics that all share."""
        own = not self.training and prefix in self._selected.paths
        return prefix if own else (None, len(prefix), *prefix[-1:])

    def _run(self, prefix: Skip, x: Tensor) -> Tensor:
        return self._selected.paths[self._path(prefix)](x)

    def _logits(self, skip: Skip, x: Tensor) -> Tensor:
        return in_float32(self._classify, self._run((*skip, skip[-1]), x))

    def blocks(self, skip: Sequence[bool] | None = None) -> list[list[nn.Module]]:
        """Of each stage, those that run in a sub-network."""
        paths = [self._selected.paths[self._path(prefix)] for prefix in skips.prefixes(self.checked(skip))[1:-1]]
        return [list(next(part for part in path.modules() if isinstance(part, Stage))) for path in paths]

    @property
    def num_skippable_stages(self) -> int:
        return self._selected.stages

    def forward(
        self, x: Tensor, skip: Sequence[bool] | None = None, return_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits of the sub-network that `skip` selects (None: the super-net); if asked for, also its h^1 … h^N."""
        if not torch.compiler.is_compiling():
            self._follow_changes()
        skip = self.checked(skip)
        x = self._run((), x)
        features = []
        for s in range(len(skip)):
            x = self._run(skip[: s + 1], x)
            if return_features:
                features.append(self._feature_map(x))
        logits = self._logits(skip, x)
        return (logits, features) if return_features else logits

    def forward_all(self, x: Tensor, subnets: Sequence[Sequence[bool]] | None = None) -> dict[Skip, Tensor]:
        """Walks the tree of stages: what several sub-networks share runs once."""
        self._follow_changes()
        wanted = self.subnets if subnets is None else [self.checked(skip) for skip in subnets]
        outputs, before = [self._run((), x)], ()  # of the sub-network that ran before, stage by stage
        logits: dict[Skip, Tensor] = {}
        for skip in sorted(set(wanted)):
            for s in range(len(skip)):
                if skip[: s + 1] != before[: s + 1]:
                    del outputs[s + 1 :]
                    outputs.append(self._run(skip[: s + 1], outputs[s]))
            logits[skip] = self._logits(skip, outputs[-1])
            before = skip
        return {skip: logits[skip] for skip in wanted}

    def _narrowed(self, skip: Sequence[bool] | None) -> nn.Module:
        """A copy that holds only what runs in a sub-network, without what makes the choice."""
        chosen: dict[nn.Module, nn.Module | None] = {**self._instead(())}  # None: left out
        for path, prefix in zip(self._by_flag(), skips.prefixes(self.checked(skip))[1:], strict=True):
            instead = self._instead(prefix)
            for module in path:
                runs = select(module, prefix[-1], instead=instead)
                chosen |= itertools.zip_longest(module, runs) if isinstance(module, Stage) else {module: runs}
        return rebuild(self, chosen)._bare()

    def view(self, skip: Sequence[bool] | None = None) -> nn.Module:
        plain = self._narrowed(skip)
        plain.__class__ = ordinary(type(self))
        self._tidy_plain(plain)
        return plain

    def trunk(self, skip: Sequence[bool] | None = None) -> "Trunk":
        """What runs in a sub-network up to its last stage, as a module that gives the stages' outputs; shared."""
        trunk = self._narrowed(skip)
        trunk.__class__, trunk.family = Trunk, type(self)
        trunk.lengths = [len(path) for path in self._by_flag()[:-1]]
        return trunk

    def compile(self, **options: Any) -> None:
        """Compile every sub-path once, in place; all 2^N sub-networks then run compiled.

        `torch.compile(model)` also works, with a graph per sub-network, but keeps at most 8 variants of a code object.
        Here each sub-path has a code object of its own: no limit is met, and the stages' different shapes are not taken
        for one dynamic shape.
        """
        compiled = {}

        def run(prefix: Skip, x: Tensor) -> Tensor:
            key = self._path(prefix)
            if key not in compiled:

                def path(x: Tensor) -> Tensor:
                    return self._selected.paths[key](x)

                path.__code__ = path.__code__.replace(co_name="_".join(map(str, ("path", *key))))
                compiled[key] = torch.compile(path, **options)
            return compiled[key](x)

        self._run = run
        self._classify = torch.compile(self._classify, **options)


class Trunk(nn.Module):
    """Image → h^1 … h^N, by a family's modules under their own names."""

    family: type[AdaptiveDepth]
    lengths: list[int]  # of each stage's part of the body

    def forward(self, x: Tensor) -> list[Tensor]:
        x, parts, features = self.family._embed(self, x), iter(self.family._body(self)), []
        for length in self.lengths:
            for part in itertools.islice(parts, length):
                x = part(x)
            features.append(self.family._feature_map(self, x))
        return features
