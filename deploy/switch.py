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


def single(wanted: Wanted, skip: tuple[bool, ...]) -> ExportedProgram:
    """The program of one sub-network, by itself."""
    return trace(wanted.model.eval().extract(skip), (wanted.images,), wanted.dynamic)


def whole(wanted: Wanted) -> ExportedProgram:
    """The program of all sub-networks, or of the one that is wanted alone."""
    if wanted.alone:
        return single(wanted, wanted.alone)
    network = Switch(wanted.model, wanted.images, wanted.dynamic)
    return trace(network, (wanted.images, torch.tensor(wanted.model.super_net)), wanted.dynamic)


class Part(nn.Module):
    """A method of a module as a module: what is before and behind the stages."""

    def __init__(self, owner: nn.Module, method: str) -> None:
        super().__init__()
        self.owner, self.method = owner, method

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.owner, self.method)(x)


class Switch(nn.Module):
    """A network with all its sub-networks, to be exported. Its tensors are the network's own."""

    def __init__(self, model: AdaptiveDepth, images: Tensor, dynamic: bool) -> None:
        super().__init__()
        model.eval()(images)  # in evaluation mode throughout, with the sub-paths of now
        self.length = model.num_skippable_stages
        # tensors by identity → their name here; they are held as well, for the identity of one that is gone may return
        self.known: dict[tuple[int, ...], tuple[str, list[Tensor]]] = {}
        # what runs, in order: the number of the stage, 0 where no flag is asked; by flag; the names of all its tensors
        self.steps: list[tuple[int, dict[bool, Callable[..., tuple[Tensor]]], list[str]]] = []
        embed = model._selected.paths[model._path(())].__self__
        x = self._add(0, {False: [Part(embed, "_embed")]}, images, dynamic)
        for stage in range(1, self.length + 2):
            before = list(itertools.product((False, True), repeat=stage - 1))
            by_flag = {f: [model._selected.paths[model._path((*b, f))] for b in before] for f in (False, True)}
            if any(len(chain) for chains in by_flag.values() for chain in chains):
                x = self._add(stage, by_flag, x, dynamic)
        self._add(0, {False: [Part(model, "_classify")]}, x, dynamic)

    def _add(self, stage: int, variants: dict[bool, list[nn.Module]], x: Tensor, dynamic: bool) -> Tensor:
        traced = {flag: _traced(modules, x, dynamic) for flag, modules in variants.items()}
        used = {flag: [self._known(tensors) for tensors in inputs] for flag, (_, inputs) in traced.items()}
        names = list(dict.fromkeys(itertools.chain(*used.values())))
        paths = {flag: _bound(graph, [names.index(name) for name in used[flag]]) for flag, (graph, _) in traced.items()}
        self.steps.append((stage, paths, names))
        return variants[False][0](x).detach()

    def _known(self, tensors: list[Tensor]) -> str:
        """The name of a tensor of the program: the one of all variants, or theirs in rows."""
        key = tuple(map(id, tensors))
        one = len(set(key)) == 1
        key = key[:1] if one else key
        if key not in self.known:
            name = f"{'tensor' if one else ROWS}_{len(self.known)}"
            self.register_buffer(name, tensors[0].detach() if one else torch.stack(tensors))
            self.known[key] = name, tensors
        return self.known[key][0]

    def forward(self, images: Tensor, skip: Tensor) -> Tensor:
        x = images
        for stage, paths, names in self.steps:
            given = [self.get_buffer(name) for name in names]
            if any(name.startswith(ROWS) for name in names):
                worth = torch.tensor([2**bit for bit in reversed(range(stage - 1))])
                row = (skip[: stage - 1] * worth).sum(dim=0, keepdim=True)  # of the flags so far, as they were listed
                rows = (name.startswith(ROWS) for name in names)
                given = [t.index_select(0, row)[0] if of_row else t for of_row, t in zip(rows, given, strict=True)]
            if stage:
                flag = skip[min(stage, self.length) - 1]
                (x,) = torch.ops.higher_order.cond(flag, paths[True], paths[False], (x, *given))
            else:
                (x,) = paths[False](x, *given)
        return x


def _traced(variants: Sequence[nn.Module], x: Tensor, dynamic: bool) -> tuple[fx.GraphModule, list[list[Tensor]]]:
    """A sub-path as a graph, and the tensors that this takes before `x`, each of every prefix that it runs under."""
    program = trace(variants[0], (x,), dynamic)
    states = []
    for variant in variants:
        parameters, buffers = (f(remove_duplicate=False) for f in (variant.named_parameters, variant.named_buffers))
        states.append({**dict(parameters), **dict(buffers), **program.constants})
    targets = [spec.target for spec in program.graph_signature.input_specs if spec.target is not None]
    return program.graph_module, [[state[target] for state in states] for target in targets]


def _bound(graph: fx.GraphModule, places: list[int]) -> Callable[..., tuple[Tensor]]:
    """A sub-path that takes its own tensors from among those of both flags."""

    def run(x: Tensor, *given: Tensor) -> tuple[Tensor]:
        return fx.Interpreter(graph).run(*(given[place] for place in places), x)

    return run


def trace(module: nn.Module, inputs: tuple[Tensor, ...], dynamic: bool) -> ExportedProgram:
    """The program of a module; with `dynamic` the first input has any number of rows."""
    shapes = ({0: Dim("batch", min=1, max=MOST)}, *[None] * (len(inputs) - 1)) if dynamic else None
    return export(module, inputs, dynamic_shapes=shapes, strict=False)
