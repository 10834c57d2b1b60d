"""Which sub-networks there are: the widths of a list, the rows of AutoSlim's lists, or every width of a range.

The networks are those of slimmable networks (ICLR 2019), universally slimmable networks (ICCV 2019) and AutoSlim by
Yu et al.; names in the state dict are the official code's.
"""

import contextlib
import sys
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..views import View, Views
from ..weights import WeightsError
from .channels import by_list, in_order
from .layers import Layers, SharedNorm, SwitchableNorm, linked


class NoStatistics(WeightsError, ValueError):
    """A width that cannot evaluate yet."""


class Listed(Views):
    """Sub-networks of a list, each with batch norms of its own."""

    settings: ClassVar[tuple[str, ...]] = ("stem",)
    subnets: tuple = ()
    _norm: ClassVar[type[nn.Module]] = SwitchableNorm

    def __init__(self, *args: Any, widths: Sequence[Hashable], shaped: Sequence[Hashable] = (), **kwargs: Any) -> None:
        widths = tuple(sorted(widths))
        super().__init__(Layers(widths, self._norm, shaped), *args, **kwargs)
        self.subnets = widths[::-1]

    def name(self, subnet: Hashable) -> str:
        return str(subnet)

    def parse(self, word: str) -> Hashable:
        with contextlib.suppress(ValueError):  # what is no number stays the word, which `checked` refuses
            word = tuple(map(int, word.split(","))) if "," in word else float(word)
        return self.checked(word)

    def checked(self, subnet: Any) -> Hashable:
        if subnet is not None and subnet not in self.subnets:
            raise ValueError(f"{subnet!r} is no width of this network; it has {', '.join(map(str, self.subnets))}")
        return self.subnets[0 if subnet is None else self.subnets.index(subnet)]


class Rows(Listed):
    """A list of channels for each sub-network: AutoSlim's, or `channels`, from the smallest to the largest."""

    settings: ClassVar[tuple[str, ...]] = ("channels",)

    def __init__(self, *args: Any, channels: Sequence[Sequence[int]] | None = None, **kwargs: Any) -> None:
        *args, known = args
        rows, whole = known if channels is None else channels, range(1, sys.maxsize)
        if not rows or not all(isinstance(row, (list, tuple)) for row in rows):
            raise ValueError("channels should be lists of whole numbers, one for each sub-network")
        for row in rows:
            refuse_misfit(row, [whole] * len(known[0]))
        # AutoSlim's lists decide which blocks have a shortcut: in others, two counts may be equal by chance
        theirs, ours = range(1 - len(known), 1), range(1, len(rows) + 1)
        counts = by_list([*known, *rows], start=theirs[0])
        super().__init__(*args, counts, widths=ours, shaped=theirs, **kwargs)
        for row in rows:
            refuse_misfit(row, [whole] * len(row), linked(self, len(row)))


class Ranged(Listed):
    """Every width from the smallest to the largest, with one weight and bias for each norm.

    Those of a list have running statistics. A width between them trains, and evaluates once it is calibrated. So does
    a list with a number of channels for each tensor, a tuple, between the smallest and the largest width's.
    """

    _norm = SharedNorm

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        *args, counts = args
        super().__init__(*args, in_order(counts), **kwargs)
        self.counts, self.links = counts, linked(self, len(counts))

    def row(self, width: float) -> tuple[int, ...]:
        """A width as a list."""
        return tuple(channels(width) for channels in self.counts)

    def name(self, subnet: float | tuple[int, ...]) -> str:
        return ",".join(map(str, subnet)) if isinstance(subnet, tuple) else str(float(subnet))

    def checked(self, subnet: Any) -> float | tuple[int, ...]:
        if subnet is None:
            return self.subnets[0]
        if isinstance(subnet, tuple):
            least, most = self.row(self.subnets[-1]), self.row(self.subnets[0])
            bounds = [range(low, high + 1) for low, high in zip(least, most, strict=True)]
            refuse_misfit(subnet, bounds, self.links)
            return subnet
        most, least = self.subnets[0], self.subnets[-1]
        if not isinstance(subnet, (int, float)) or not least <= subnet <= most:
            raise ValueError(f"{subnet!r} is no width of this network; it has all from {least} to {most}")
        return float(subnet)

    def draw(self, place: float) -> float:
        """Every width of the range is as likely as any other."""
        most, least = self.subnets[0], self.subnets[-1]
        return least + place * (most - least)

    def _view(self, subnet: float | tuple[int, ...]) -> View:
        """Widths between those of the list are one view where they have as many channels."""
        between = isinstance(subnet, float) and subnet not in self.subnets and subnet not in self._statistics
        return super()._view(self.row(subnet) if between else subnet)

    def ready(self, subnet: float | tuple[int, ...]) -> bool:
        """Not before the width has been trained or calibrated, as nobody may have drawn it."""
        if subnet in self._statistics or subnet not in self.subnets:
            return subnet in self._statistics
        norms = (module.bn[module.number[subnet]] for module in self.modules() if isinstance(module, SharedNorm))
        return any(norm.running_mean.any() or (norm.running_var != 1).any() for norm in norms)

    def forward(self, x: Tensor, subnet: Any = None, return_features: bool = False) -> Any:
        if not self.training:
            self._refuse_blank(self.checked(subnet))
        return super().forward(x, subnet, return_features)

    def extract(self, subnet: Any = None) -> nn.Module:
        self._refuse_blank(self.checked(subnet))
        return super().extract(subnet)

    def _refuse_blank(self, width: float | tuple[int, ...]) -> None:
        if width not in self.subnets and width not in self._statistics:
            how = f"calibrate it first, by --calibrate N or model.calibrate(batches, [{width}])"
            raise NoStatistics(f"width {self.name(width)} has no running statistics of its own: {how}")


def refuse_misfit(row: Sequence[int], bounds: Sequence[range], links: Sequence[Sequence[int]] = ()) -> None:
    """A list of channels has so many entries, each within its bounds, and those of a group are the same."""
    if len(row) != len(bounds):
        raise ValueError(f"a list of {len(row)} numbers of channels; this network takes {len(bounds)}")
    for place, (count, bound) in enumerate(zip(row, bounds, strict=True), start=1):
        if not isinstance(count, int) or count not in bound:
            possible = f"from {bound[0]} to {bound[-1]}" if bound[-1] < sys.maxsize - 1 else "a whole number"
            raise ValueError(f"{count!r} channels at place {place} of a list; there it is {possible}")
    for places in links:
        if len({row[place] for place in places}) > 1:
            where, counts = (", ".join(map(str, part)) for part in zip(*((p + 1, row[p]) for p in places), strict=True))
            raise ValueError(f"{counts} channels at places {where} of a list; they are added, so have to be the same")


def widths_from(least: float) -> tuple[float, ...]:
    """The authors' list of a range: every fortieth up to 1."""
    return tuple(number / 40 for number in range(round(least * 40), 41))
