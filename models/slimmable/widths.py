"""Which sub-networks there are: the widths of a list, the rows of AutoSlim's lists, or every width of a range.

The networks are those of slimmable networks (ICLR 2019), universally slimmable networks (ICCV 2019) and AutoSlim by
Yu et al.; names in the state dict are the official code's.
"""

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..views import Views
from ..weights import WeightsError
from .layers import Layers, SharedNorm, SwitchableNorm


class NoStatistics(WeightsError, ValueError):
    """A width that cannot evaluate yet."""


class Listed(Views):
    """Sub-networks of a list, each with batch norms of its own."""

    settings: ClassVar[tuple[str, ...]] = ("stem",)
    subnets: tuple = ()
    _norm: ClassVar[type[nn.Module]] = SwitchableNorm

    def __init__(self, *args: Any, widths: Sequence[Hashable], **kwargs: Any) -> None:
        widths = tuple(sorted(widths))
        super().__init__(Layers(widths, self._norm), *args, **kwargs)
        self.subnets = widths[::-1]

    def name(self, subnet: Hashable) -> str:
        return str(subnet)

    def parse(self, word: str) -> Hashable:
        return self.checked(_number(word))

    def checked(self, subnet: Any) -> Hashable:
        if subnet is not None and subnet not in self.subnets:
            raise ValueError(f"{subnet!r} is no width of this network; it has {', '.join(map(str, self.subnets))}")
        return self.subnets[0 if subnet is None else self.subnets.index(subnet)]


class Ranged(Listed):
    """Every width from the smallest to the largest, with one weight and bias for each norm.

    Those of a list have running statistics. A width between them trains, and evaluates once it is calibrated.
    """

    _norm = SharedNorm

    def name(self, subnet: float) -> str:
        return str(float(subnet))

    def checked(self, subnet: Any) -> float:
        if subnet is None:
            return self.subnets[0]
        if not self._holds(subnet):
            most, least = self.subnets[0], self.subnets[-1]
            raise ValueError(f"{subnet!r} is no width of this network; it has all from {least} to {most}")
        return float(subnet)

    def _holds(self, subnet: Any) -> bool:
        return isinstance(subnet, (int, float)) and self.subnets[-1] <= subnet <= self.subnets[0]

    def draw(self, place: float) -> float:
        """Every width of the range is as likely as any other."""
        most, least = self.subnets[0], self.subnets[-1]
        return least + place * (most - least)

    def forward(self, x: Tensor, subnet: Any = None, **asked: Any) -> Tensor:
        if not self.training:
            self._refuse_blank(self.checked(subnet))
        return super().forward(x, subnet, **asked)

    def extract(self, subnet: Any = None) -> nn.Module:
        self._refuse_blank(self.checked(subnet))
        return super().extract(subnet)

    def _refuse_blank(self, width: float) -> None:
        if width not in self.subnets and width not in self._statistics:
            how = f"calibrate it first, by --calibrate N or model.calibrate(batches, [{width}])"
            raise NoStatistics(f"width {width} has no running statistics of its own: {how}")


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def widths_from(least: float) -> tuple[float, ...]:
    """The authors' list of a range: every fortieth up to 1."""
    return tuple(number / 40 for number in range(round(least * 40), 41))
