"""All depths of a network as one program: `forward(images, skip)`, where `skip` is a tensor of a bool per stage.

Each sub-path is traced by itself, then they are put together: `cond` takes one of a stage's two at run time. A tensor
that several sub-paths use is one tensor of the program. Running statistics that differ by what ran before (calibrated
ones) are stacked, and the flags so far choose a row: the norms then read them at run time and cannot be folded into
convolutions, so that a ResNet-50 takes a third longer (results/export.md). Networks of layer norms have none.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from models import AdaptiveDepth

ROWS = "rows"  # begins the name of what has a row for each list of flags so far
MOST = 65536  # images of a call where their number is free; PyTorch 2.6 wants a bound


class Wanted(NamedTuple):
    """What a file is made of."""

    model: AdaptiveDepth
    subnets: list[tuple[bool, ...]]
    images: Tensor  # an example
    dynamic: bool  # any number of images
    facts: dict[str, Any]  # to be kept with it

    @property
    def alone(self) -> tuple[bool, ...] | None:
        """The sub-network that is wanted without the others."""
        return self.subnets[0] if len(self.subnets) == 1 else None


def single(wanted: Wanted, skip: tuple[bool, ...] | None = None) -> ExportedProgram:
    """The program of one sub-network, by itself."""
    network = wanted.model.eval().extract(wanted.alone if skip is None else skip)
    return trace(network, (wanted.images,), wanted.dynamic)


def switch(wanted: Wanted) -> ExportedProgram:
    """The program of all of them."""
    network = Switch(wanted.model, wanted.images, wanted.dynamic)
    return trace(network, (wanted.images, torch.tensor(wanted.model.super_net)), wanted.dynamic)


class Part(nn.Module):
    """A method of a module as a module: what is before and behind the stages."""

    def __init__(self, owner: nn.Module, method: str) -> None:
        super().__init__()
        self.owner, self.method = owner, method

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.owner, self.method)(x)


class Traced:
    """A traced sub-path: its program, and the tensors it takes before `x`, of every prefix that it runs under."""

    def __init__(self, variants: Sequence[nn.Module], x: Tensor, dynamic: bool) -> None:
        program = trace(variants[0], (x,), dynamic)
        self.graph = program.graph_module
        specs = program.graph_signature.input_specs
        states = [_tensors(variant) | program.constants for variant in variants]
        self.inputs = [[state[spec.target] for state in states] for spec in specs if spec.target is not None]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor]:
        return fx.Interpreter(self.graph).run(*tensors)


class Switch(nn.Module):
    """A network with all its sub-networks, to be exported. Its tensors are the network's own."""

    def __init__(self, model: AdaptiveDepth, images: Tensor, dynamic: bool = True) -> None:
        super().__init__()
        model.eval()(images)  # in evaluation mode throughout, with the sub-paths of now
        self.length = model.num_skippable_stages
        self.known: dict[tuple[int, ...], str] = {}  # tensors by identity → their name here
        # what runs, in order: the number of the stage, 0 where no flag is asked; by flag; the names of all its tensors
        self.steps: list[tuple[int, dict[bool, Traced], list[str]]] = []
        embed = model._selected.paths[model._path(())].__self__
        x = self._add(0, {False: [Part(embed, "_embed")]}, images, dynamic)
        for stage in range(1, self.length + 2):
            before = list(itertools.product((False, True), repeat=stage - 1))
            by_flag = {f: [model._selected.paths[model._path((*b, f))] for b in before] for f in (False, True)}
            if any(len(chain) for chains in by_flag.values() for chain in chains):
                x = self._add(stage, by_flag, x, dynamic)
        self._add(0, {False: [Part(model, "_classify")]}, x, dynamic)

    def _add(self, stage: int, variants: dict[bool, list[nn.Module]], x: Tensor, dynamic: bool) -> Tensor:
        paths = {flag: Traced(modules, x, dynamic) for flag, modules in variants.items()}
        names = [self._known(tensors) for path in paths.values() for tensors in path.inputs]
        self.steps.append((stage, paths, list(dict.fromkeys(names))))
        return variants[False][0](x).detach()

    def _known(self, tensors: list[Tensor]) -> str:
        """The name of a tensor of the program: the one of all variants, or theirs in rows."""
        key = tuple(dict.fromkeys(map(id, tensors)))
        key = key if len(key) == 1 else tuple(map(id, tensors))
        if key not in self.known:
            self.known[key] = name = f"{ROWS if len(key) > 1 else 'tensor'}_{len(self.known)}"
            self.register_buffer(name, torch.stack(tensors) if len(key) > 1 else tensors[0].detach())
        return self.known[key]

    def forward(self, images: Tensor, skip: Tensor) -> Tensor:
        x = images
        for stage, paths, names in self.steps:
            given = [self.get_buffer(name) for name in names]
            if any(name.startswith(ROWS) for name in names):
                worth = torch.tensor([2**bit for bit in reversed(range(stage - 1))])
                row = (skip[: stage - 1] * worth).sum()  # of the flags so far, as they were listed
                given = [t[row] if name.startswith(ROWS) else t for name, t in zip(names, given, strict=True)]
            run = {flag: _bound(path, self._places(path, names)) for flag, path in paths.items()}
            if stage:
                flag = skip[min(stage, self.length) - 1]
                (x,) = torch.ops.higher_order.cond(flag, run[True], run[False], (x, *given))
            else:
                (x,) = run[False](x, *given)
        return x

    def _places(self, path: Traced, names: list[str]) -> list[int]:
        return [names.index(self._known(tensors)) for tensors in path.inputs]


def _bound(path: Traced, places: list[int]) -> Callable[..., tuple[Tensor]]:
    """A sub-path that takes its own tensors from among those of both."""

    def run(x: Tensor, *given: Tensor) -> tuple[Tensor]:
        return path(*(given[place] for place in places), x)

    return run


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(itertools.chain(*(f(remove_duplicate=False) for f in (module.named_parameters, module.named_buffers))))


def trace(module: nn.Module, inputs: tuple[Tensor, ...], dynamic: bool) -> ExportedProgram:
    """The program of a module; with `dynamic` the first input has any number of rows."""
    shapes = ({0: Dim("batch", min=1, max=MOST)}, *[None] * (len(inputs) - 1)) if dynamic else None
    return export(module, inputs, dynamic_shapes=shapes, strict=False)
