"""How many channels a tensor has, as a function of the sub-network.

Partial functions of these, since they can be pickled: `partial(rounded, 32)` is a tensor of 32 channels at width 1.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

Channels = Callable[[Any], int]


def fixed(count: int, subnet: Any) -> int:
    return count


RGB = partial(fixed, 3)


def rounded(count: int, width: float) -> int:
    """MobileNets': the nearest multiple of 8 that does not lose more than a tenth."""
    wanted = count * width
    nearest = max(1, int(wanted + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8


def truncated(count: int, width: float) -> int:
    """ResNets' and ShuffleNets'."""
    return int(count * width)


def times(factor: int, channels: Channels, subnet: Any) -> int:
    return factor * channels(subnet)


def part(divisor: int, channels: Channels, subnet: Any) -> int:
    return channels(subnet) // divisor


def difference(channels: Channels, others: Channels, subnet: Any) -> int:
    return channels(subnet) - others(subnet)


def placed(place: int, channels: Channels, subnet: Any) -> int:
    """Where a sub-network may also be a list itself, a tuple of counts: what that says at this place."""
    return subnet[place] if isinstance(subnet, tuple) else channels(subnet)


def in_order(counts: Sequence[Channels]) -> list[Channels]:
    return [partial(placed, place, channels) for place, channels in enumerate(counts)]


def by_list(rows: Sequence[Sequence[int]], start: int) -> list[Channels]:
    """Of each entry, where a sub-network is the number of a row, from `start`."""
    columns = zip(*rows, strict=True)
    return in_order([partial(operator.getitem, dict(enumerate(column, start))) for column in columns])
