"""Depth on the networks of timm: `timm:NAME`, where its blocks are residual.

timm makes the network, and a probe finds its stages. Then it becomes many networks in one, which run timm's own
forward: under a flag, lists of blocks lack the skippable ones, and norms are those of the flag. A norm's flag is that
of the stage in or before which it runs, behind the last stage that one's; norms before the first stage have no twin.
"""

import copy
import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import probe
from .registry import SOURCES
from .selection import NORMS, noting, start_twins
from .skip import ByStage, Skip
from .subnet import Cost, ManyNetworks, cost, ordinary
from .views import Views

NORMS_OF_TIMM = ("RmsNorm", "SimpleNorm", "EvoNorm", "FilterResponseNorm", "FrozenBatchNorm")  # beginnings of names
MOST_STAGES = 8  # 256 sub-networks
PROBE = 128  # pixels of the image by which stages are found, where a network takes any


class AnyDepth(ByStage, Views):
    """Put before the class of a network that is there already, by `adapt`."""

    settings = ("switchable_norms",)
    of_family = ("depth_stages", "_flags")
    depth_stages: Sequence[probe.Stage]
    _flags: dict[str, int]  # of norms with a twin: the number of their stage

    @property
    def num_skippable_stages(self) -> int:
        return len(self.depth_stages)

    def _children(self, module: nn.Module, name: str, subnet: Skip) -> dict[str, nn.Module | None]:
        stages = zip(self.depth_stages, subnet, strict=True)
        skipped = {block for stage, flag in stages if flag for block in stage.skippable}
        children = {}
        for key, child in module._modules.items():
            full = f"{name}.{key}".lstrip(".")
            if full in skipped or (full.endswith("_skip") and full.removesuffix("_skip") in self._flags):
                continue
            switched = full in self._flags and subnet[self._flags[full]]
            children[key] = module._modules[f"{key}_skip"] if switched else child
        return children

    def forward(
        self, x: Tensor, skip: Sequence[bool] | None = None, return_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits of the sub-network that `skip` selects (None: the super-net); if asked for, also its h^1 … h^N."""
        if not return_features:
            return super().forward(x, skip)
        skip = self.checked(skip)
        network, features = noting(self._view(skip).network, self._ends(skip))
        logits = network(x)
        return logits, [self._feature_map(feature) for feature in features]

    def _ends(self, skip: Skip) -> list[str]:
        """The last block that runs in each stage."""
        stages = zip(self.depth_stages, skip, strict=True)
        return [[name for name in stage.blocks if not (flag and name in stage.skippable)][-1] for stage, flag in stages]

    def trunk(self, skip: Sequence[bool] | None = None) -> "Trunk":
        """A sub-network as a module that gives its stages' outputs. What is behind them runs in vain."""
        skip = self.checked(skip)
        return Trunk(self.view(skip), self._ends(skip), type(self)._feature_map)

    def _feature_map(self, x: Tensor) -> Tensor:
        """A stage's output h^s as B, C, H, W; of tokens that are no square as B, C, tokens, 1."""
        if x.ndim == 3:
            prefix = getattr(self, "num_prefix_tokens", 0)
            patches = x[:, prefix:].transpose(1, 2)
            side = round(patches.shape[-1] ** 0.5)
            return patches.unflatten(2, (side, side) if side**2 == patches.shape[-1] else (-1, 1))
        return x.permute(0, 3, 1, 2) if getattr(self, "output_fmt", "NCHW") == "NHWC" else x

    def train(self, mode: bool = True) -> "AnyDepth":
        """Some modules keep what they made of their weights until they train again, in attributes that copies lack."""
        super().train(True)
        super().train(mode)
        for view in self._views.values():
            for copied, module in view.copies[:-1]:  # the last is the network itself
                plain = {key: value for key, value in vars(module).items() if not key.startswith("_")}
                copied.__dict__.update(plain)
        return self

    def cost(self, subnet: Any = None, image_size: int | None = None) -> Cost:
        """Of a copy: some modules keep what they computed, and here that would be a shape without values."""
        return cost(self.extract(subnet), image_size or self.size(subnet) or 224)

    _plain = ManyNetworks._plain  # a view has no modules that are made for a sub-network

    def __reduce_ex__(self, protocol: Any) -> tuple:
        """The class is made when it is needed, so copies and pickles name the class that it was made of."""
        return _blank, (ordinary(type(self)),), self.__getstate__()


class Trunk(nn.Module):
    def __init__(self, network: nn.Module, ends: list[str], feature_map: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.ends, self.feature_map = network, ends, feature_map
        self.training = network.training

    def forward(self, x: Tensor) -> list[Tensor]:
        network, features = noting(self.network, self.ends)
        network(x)
        return [self.feature_map(network, feature) for feature in features]


@functools.cache
def _adaptive(kind: type[nn.Module]) -> type[AnyDepth]:
    return type(f"Adaptive{kind.__name__}", (AnyDepth, kind), {"__module__": __name__})


def _blank(kind: type[nn.Module]) -> AnyDepth:
    return object.__new__(_adaptive(kind))


def adapt(network: nn.Module, image: Tensor, norms: tuple[type[nn.Module], ...] = NORMS) -> AnyDepth:
    """Make of a network many networks in one: itself, changed. A ValueError says why that cannot be.

    `norms` are the kinds of norms of which mandatory blocks get two sets.
    """
    training = network.training
    expected, calls = probe.watch(network, image)
    stages = probe.stages(network, calls)
    network.train(training)
    if not stages:
        kinds = ", ".join(sorted(probe.misfits(network, calls)))
        why = f": {kinds} keep the shape, but do not give back what they get when they have no weights" if kinds else ""
        raise ValueError(f"in its lists of modules no residual block follows one of the same shape{why}")
    if len(stages) > MOST_STAGES:
        raise ValueError(f"it has {len(stages)} residual stages; {MOST_STAGES} are the most")
    if any("_skip." in name for name in network.state_dict()):
        raise ValueError("it has modules of its own whose names end in _skip, as those of second norms do")
    if taken := {*vars(network), *network._modules} & set(dir(AnyDepth)) - set(dir(nn.Module)):
        raise ValueError(f"it has attributes that are called as those of networks here: {', '.join(sorted(taken))}")
    bypassed = _bypassed(network, stages, image)
    network.depth_stages, network._flags = stages, _twins(network, stages, calls, norms)
    network.__class__ = _adaptive(type(network))
    network._select()
    _verify(network, image, expected, bypassed)
    return network


def _twins(network: nn.Module, stages: list[probe.Stage], calls: probe.Calls, norms: tuple) -> dict[str, int]:
    """Give each norm of a mandatory module its twin `…_skip`; whose flag each of them follows."""
    begin = calls[stages[0].blocks[0]].began
    ends = [calls[stage.blocks[-1]].ended for stage in stages]
    skippable = tuple(f"{block}." for stage in stages for block in stage.skippable)
    flags = {}
    for name, module in list(network.named_modules()):
        if not isinstance(module, norms) or name not in calls or f"{name}.".startswith(skippable):
            continue
        if calls[name].began >= begin:
            flags[name] = min(sum(end < calls[name].began for end in ends), len(stages) - 1)
            parent, _, key = name.rpartition(".")
            network.get_submodule(parent).add_module(f"{key}_skip", copy.deepcopy(module))
    return flags


def _shaken(network: nn.Module) -> nn.Module:
    """A copy with other weights: some blocks are made so that they do nothing yet."""
    network = copy.deepcopy(network).eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "_skip." not in name:
                parameter += 0.01 * torch.randn(parameter.shape, generator=noise)
    start_twins(network)
    return network


@torch.no_grad()
def _bypassed(network: nn.Module, stages: list[probe.Stage], image: Tensor) -> Tensor:
    """What the network gives if all skippable blocks hand on what they get."""
    network = _shaken(network)
    for stage in stages:
        for block in stage.skippable:
            network.get_submodule(block).register_forward_hook(lambda module, inputs, output: inputs[0])
    return network(image)


@torch.no_grad()
def _verify(model: AnyDepth, image: Tensor, expected: Tensor, bypassed: Tensor) -> None:
    """The super-net is the network that was there, the base-net the one without the skippable blocks."""
    training = model.training
    model.eval()
    try:
        same = torch.equal(model(image), expected)
        without = _shaken(model)(image, model.base_net)
    except (RuntimeError, IndexError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"without its skippable blocks it fails: {error}") from None
    finally:
        model.train(training)
    if not same or not torch.equal(without, bypassed):
        raise ValueError(f"without its skippable blocks it computes something else ({type(model).__name__})")


def make(name: str) -> Callable[..., AnyDepth]:
    """What makes `timm:NAME`."""
    try:
        import timm
    except ImportError:
        raise ValueError(f"timm:{name} needs timm: pip install timm") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no network {name}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    known = timm.get_pretrained_cfg(name)
    fixed = bool(known and known.fixed_input_size)
    theirs = [kind for key, kind in vars(timm.layers).items() if key.startswith(NORMS_OF_TIMM)]
    norms = (*NORMS, *(kind for kind in theirs if isinstance(kind, type)))

    def build(*, num_classes: int = 1000, image_size: int | None = None, switchable_norms: bool = True) -> AnyDepth:
        size = {"img_size": image_size} if fixed and image_size else {}
        try:
            network = timm.create_model(name, num_classes=num_classes, **size)
            pixels = (image_size or known.input_size[-1]) if fixed else PROBE
            image = torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
            if fixed:
                network.image_size = pixels
            return adapt(network, image, norms if switchable_norms else ())
        except (ValueError, AssertionError, RuntimeError, TypeError) as error:  # whatever timm says of its arguments
            raise ValueError(f"timm:{name}: {' '.join(str(error).split())[:240]}") from None

    build.settings = (*AnyDepth.settings, *(("image_size",) if fixed else ()))
    return build


SOURCES["timm"] = make
