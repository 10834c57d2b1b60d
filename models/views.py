"""Networks whose sub-networks are views: ordinary networks that share the weights, one made for each when it is asked.

A module that runs differently in different sub-networks (a convolution that uses its leading channels, a norm that is
one of several, a kernel that is generated) has a method `at(subnet)`, which gives what runs there: a module that shares
every tensor, and whose children are asked in turn. The rest of a view are shallow copies and the modules themselves, so
its forward is the ordinary network's. A sub-network is a value handed down: no module changes in a forward pass.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .calibration import WithStatistics
from .selection import BATCH_NORM, rebuild, with_buffers, with_children
from .subnet import ManyNetworks, ordinary


class View(NamedTuple):
    """A sub-network as it runs, and what it was made of."""

    run: Callable[..., Any]
    network: nn.Module
    copies: list[tuple[nn.Module, nn.Module]]  # and originals; norms with statistics of their own are not among them
    parts: list[tuple[nn.Module, dict[str, nn.Module | None]]]  # the children that each module had


MOST = 64  # views that are kept beside those of the list; without a limit, what is drawn would add one in every step


class Views(WithStatistics):
    """Put before an ordinary network whose modules may have `at`. A family says which sub-networks there are."""

    settings: ClassVar[tuple[str, ...]] = ()  # of the command's settings of networks, those that a family knows
    made_here = ("_views", "_compiling")
    _compiling: Mapping[str, Any] | None = None  # options of torch.compile

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._select()

    def _select(self) -> None:
        self._views: dict[Hashable, View] = {}

    def _view(self, subnet: Hashable) -> View:
        """The view that runs, in the mode that its modules are in now. Training uses the statistics of training."""
        own = not self.training and subnet in self._statistics
        view = self._views.get((subnet, own))
        if view is None or any(module._modules != children for module, children in view.parts):
            if len(self._views) >= MOST + 2 * len({*self.subnets, *self._statistics}):
                self._views.pop(next(iter(self._views)))
            self._views[subnet, own] = view = self._made(subnet, own)
        for copied, module in view.copies:
            copied.__dict__["training"] = module.training
        return view

    def _children(self, module: nn.Module, name: str, subnet: Hashable) -> dict[str, nn.Module | None]:
        """What a module without `at` holds in this sub-network. A family may leave some out, or take others."""
        return module._modules

    def _made(self, subnet: Hashable, own: bool) -> View:
        copies: list[tuple[nn.Module, nn.Module]] = []
        statistics = self._statistics[subnet] if own else {}
        mine = set(self.modules())

        def at(module: nn.Module, name: str, leader: nn.Module) -> nn.Module:
            """The module as it runs in this sub-network. It is in the mode of `leader`, a module of this network."""
            chosen = module.at(subnet) if hasattr(module, "at") else module
            leader = next((one for one in (chosen, module) if one in mine), leader)
            prefix, parts = f"{name}." if name else "", self._children(chosen, name, subnet)
            children = {key: child and at(child, prefix + key, leader) for key, child in parts.items()}
            runs = chosen if children == chosen._modules and name else with_children(chosen, children)
            if name in statistics:
                runs = with_buffers(runs, statistics[name], self._estimating)
            elif runs is not leader:
                runs.__dict__["training"] = leader.training
                copies.append((runs, leader))
            return runs

        network = at(self, "", self)
        if isinstance(network, ManyNetworks):
            network._bare().__class__ = ordinary(type(self))
        parts = [(module, dict(module._modules)) for module in self.modules() if module._modules]
        return View(self._runs(network, subnet), network, copies, parts)

    def _runs(self, network: nn.Module, subnet: Hashable) -> Callable[..., Any]:
        """The network, compiled if that was asked for: with a code object of its own, no limit of torch's is met.

        Of a range those of the list alone: what is drawn from it runs too seldom to be worth a compilation.
        """
        if self._compiling is None or subnet not in self.subnets:
            return network

        def run(*given: Any) -> Any:
            return network(*given)

        run.__code__ = run.__code__.replace(co_name=f"run_{self.name(subnet)}")
        return torch.compile(run, **self._compiling)

    def forward(
        self, x: Tensor, subnet: Any = None, return_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits of a sub-network (None: the largest); if asked for, also features to be taught by: most have none."""
        logits = self._view(self.checked(subnet)).run(x)
        return (logits, []) if return_features else logits

    def view(self, subnet: Any = None) -> nn.Module:
        subnet = self.checked(subnet)
        return self._made(subnet, subnet in self._statistics).network

    def _plain(self, subnet: Any) -> nn.Module:
        network = self.view(subnet)
        chosen = {module: module.plain() for module in network.modules() if hasattr(module, "plain")}
        return rebuild(network, chosen)

    def compile(self, **options: Any) -> None:
        """Compile each sub-network when it first runs."""
        self._compiling = options
        self._select()

    def _batch_norms(self, subnets: Sequence[Hashable]) -> dict[Hashable, dict[str, nn.Module]]:
        views = {subnet: self._view(subnet).network for subnet in subnets}
        return {
            subnet: {name: module for name, module in view.named_modules() if isinstance(module, BATCH_NORM)}
            for subnet, view in views.items()
        }

    def _subnets_of(self, words: Iterable[str]) -> list[Hashable]:
        """Also others than `subnets`, which a word can spell."""
        subnets = {self.name(subnet): subnet for subnet in self.subnets}
        for word in set(words) - subnets.keys():
            with contextlib.suppress(ValueError):  # the caller refuses the words that nobody knows
                subnets[word] = self.parse(word)
        return list(subnets.values())

    def forget_statistics(self) -> None:
        self._keep({})  # in any case: weights are being loaded, perhaps in the place of those that views hold

    def _word(self, subnet: Hashable) -> str:
        return self.name(subnet)
