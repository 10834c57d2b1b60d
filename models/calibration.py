"""Running statistics of every sub-network's own, in the place of those that a few trained ones have left behind.

A batch norm's statistics depend on all that runs before it. They are kept by sub-network, or by what several have in
common, beside the weights and outside of the model's state dict, which stays as it is. Of adaptive depth that is the
prefix of `skip`: one set for what is before the stages, and 2, 4, … 2^N for the norms of each stage. Training uses
nothing of this; after it, calibrate anew.
"""

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .subnet import Images, ManyNetworks
from .weights import WeightsError

Statistics = Mapping[Hashable, dict[str, dict[str, Tensor]]]  # by key and by the name of a norm: its buffers


class WithStatistics(ManyNetworks):
    """Keeps statistics and moves and copies them with the network, which says what their keys are."""

    made_here: ClassVar[tuple[str, ...]]  # attributes that a network's copies make for themselves
    of_family: ClassVar[tuple[str, ...]] = ()  # attributes of the family's own, which an ordinary network lacks
    _statistics: Statistics = MappingProxyType({})
    _estimating = False  # True in a copy that estimates statistics: its norms take over those of each batch

    def _select(self) -> None:
        """Make what runs anew: a norm that has statistics under a key is a copy there which holds them."""
        raise NotImplementedError

    def _batch_norms(self, subnets: Sequence[Hashable]) -> Mapping[Hashable, dict[str, nn.Module]]:
        """By key and name, those that run in these sub-networks."""
        raise NotImplementedError

    def _word(self, key: Hashable) -> str:
        """The key as files say it."""
        raise NotImplementedError

    def _run_by(self, subnets: Sequence[Any]) -> Sequence[Any]:
        """The sub-networks whose statistics an evaluation of these uses."""
        return subnets

    def _subnets_of(self, words: Iterable[str]) -> Sequence[Hashable]:
        """Sub-networks whose statistics a file of these words may hold."""
        return self.subnets

    def _keep(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._select()

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """By the flags and the norm's name: {"TF": {"layer2.0.bn1_skip.running_mean": …}}; "" is before the stages."""
        return _by_name(self, self._statistics)

    def forget_statistics(self) -> None:
        if self._statistics:
            self._keep({})

    @torch.no_grad()
    def calibrate(
        self,
        batches: Iterable[Images],
        subnets: Sequence[Any] | None = None,
        reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    ) -> int:
        """Estimate the statistics of sub-networks (None: of all) from batches of images; evaluation then uses them.

        They are what each sub-network by itself would come to with its batch norms alone in training mode, as the mean
        over the batches; but what several share runs once. Weights and the statistics of training stay as they are.
        Several processes take a share of the batches each; `reduce` sums a tensor over them. Images are on the model's
        device, and precision is the caller's (autocast around it). Returns the number of norms, 0 if there are none.
        """
        wanted = self._run_by(self.subnets if subnets is None else [self.checked(subnet) for subnet in subnets])
        statistics = _blank(self, wanted)
        buffers = [buffer for norms in statistics.values() for norm in norms.values() for buffer in norm.values()]
        if not buffers:
            return 0
        modes = [(module, module.training) for module in self.modules()]
        try:
            sums = reduce(_sums(self.eval(), statistics, buffers, batches, wanted)).cpu()
        finally:
            for module, training in modes:
                module.training = training
        parts = iter(sums.split([buffer.numel() for buffer in buffers]))
        for norms in statistics.values():
            for name, norm in norms.items():
                found = {key: next(parts) for key in norm}
                count = found.pop("num_batches_tracked")
                if not count:
                    raise ValueError(f"{name} saw no images: there are none, or no sub-network runs it")
                norm["num_batches_tracked"].copy_(count[0])
                for key, summed in found.items():
                    norm[key].copy_(summed / count)
        self._keep(statistics)
        return len({name for norms in statistics.values() for name in norms})

    def load_statistics(self, saved: Mapping[str, Mapping[str, Tensor]], source: str = "file") -> None:
        """Take over what `self.statistics()` gave, or change nothing and say what does not fit."""
        problem = f"{source}: its statistics do not fit {type(self).__name__}"
        way_out = "leave them out, or estimate them anew for this network"
        if not isinstance(saved, Mapping) or not all(isinstance(part, Mapping) for part in saved.values()):
            raise WeightsError(f"{problem}: they are no dictionaries of tensors; {way_out}")
        statistics = _blank(self, self._subnets_of(saved))
        known = _by_name(self, statistics)
        for word, theirs in saved.items():
            if word not in known:
                raise WeightsError(f"{problem}: {word!r} is no prefix of a sub-network's name with norms; {way_out}")
            ours = known[word]
            shapes = {name: getattr(tensor, "shape", None) for name, tensor in theirs.items()}
            misfits = [name for name, tensor in ours.items() if shapes.get(name) != tensor.shape]
            misfits += [name for name in theirs if name not in ours]
            if misfits:
                what = f"of {word!r}, {misfits[0]} and {len(misfits) - 1} more are missing, unknown or of another shape"
                raise WeightsError(f"{problem}: {what}; {way_out}")
            for name, tensor in theirs.items():
                ours[name].copy_(tensor)
        self._keep({key: norms for key, norms in statistics.items() if self._word(key) in saved})

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget_statistics()  # they are of other weights

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WithStatistics":
        for norms in self._statistics.values():
            for buffers in norms.values():
                buffers |= {name: fn(buffer) for name, buffer in buffers.items()}  # the norms hold this very dict
        return super()._apply(fn, recurse)

    def _bare(self) -> "WithStatistics":
        """This copy of a network, without what the original has made for itself."""
        for name in (*self.made_here, *self.of_family, "_statistics"):
            self.__dict__.pop(name, None)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are not compiled, and make for themselves what runs."""
        return {name: value for name, value in self.__dict__.items() if name not in self.made_here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._select()


def _blank(model: WithStatistics, subnets: Sequence[Hashable]) -> Statistics:
    """Zeros for the batch norms that run in these sub-networks."""
    blank: dict[Hashable, dict[str, dict[str, Tensor]]] = {}
    for key, norms in model._batch_norms(subnets).items():
        for name, norm in norms.items():
            like = norm.weight if norm.running_mean is None else norm.running_mean
            mean = torch.zeros(norm.num_features, dtype=like.dtype, device=like.device)
            counter = torch.zeros((), dtype=torch.long, device=like.device)
            buffers = {"running_mean": mean, "running_var": mean.clone(), "num_batches_tracked": counter}
            blank.setdefault(key, {})[name] = buffers
    return blank


def _sums(
    model: WithStatistics, scratch: Statistics, buffers: list[Tensor], batches: Iterable[Images], subnets: list[Any]
) -> Tensor:
    """What the batches' own statistics sum up to, one after the other as in `buffers`, those of `scratch`."""
    walker = copy.copy(model)  # with sub-paths of its own
    walker._estimating = True
    walker._keep(scratch)
    sums = torch.zeros(sum(buffer.numel() for buffer in buffers), dtype=torch.float64, device=buffers[0].device)
    for images in batches:
        walker.forward_all(images, subnets)
        sums += torch.cat([buffer.flatten().double() for buffer in buffers])
        torch._foreach_zero_(buffers)
    return sums


def _by_name(model: WithStatistics, statistics: Statistics) -> dict[str, dict[str, Tensor]]:
    words: dict[str, dict[str, Tensor]] = {}
    for key, norms in statistics.items():
        for norm, buffers in norms.items():
            part = words.setdefault(model._word(key), {})
            part.update((f"{norm}.{name}", buffer) for name, buffer in buffers.items())
    return words
