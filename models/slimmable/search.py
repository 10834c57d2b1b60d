"""AutoSlim's search: a trained network of a range of widths is slimmed greedily, by one group of channels at a time.

A state of the search is a list, which the network runs as a sub-network. In training mode its norms use the statistics
of the batch, since a list has none of its own.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .channels import rounded
from .widths import Ranged

Row = tuple[int, ...]
Batches = Sequence[tuple[Tensor, Tensor]]


def removals(model: Ranged, row: Row, groups: int) -> Iterator[Row]:
    """The lists with a group less. Of a tensor's channels it is the `groups`-th part, rounded to a multiple of 8.

    Tensors that are added to each other shrink together, and none below what it has at the smallest width.
    """
    widest, narrowest = (model.row(model.subnets[end]) for end in (0, -1))
    for places in model.links:
        place = places[0]
        count = max(narrowest[place], row[place] - rounded(widest[place], 1 / groups))
        if count < row[place]:
            yield tuple(count if at in places else old for at, old in enumerate(row))


@torch.no_grad()
def judge(model: Ranged, row: Row, batches: Batches) -> tuple[int, float]:
    """Top-1 errors and mean cross entropy, by the statistics of these batches."""
    errors, losses = 0, []
    for images, targets in batches:
        logits = model.train()(images, row).float()
        errors += (logits.argmax(dim=1) != targets).sum()
        losses.append(F.cross_entropy(logits, targets, reduction="sum"))
    return int(errors), torch.stack(losses).sum().item() / sum(len(targets) for _, targets in batches)


def next_row(model: Ranged, row: Row, groups: int, batches: Batches) -> tuple[int, float, Row]:
    """Errors, loss and list of the removal that costs the fewest errors; of several such, the least cross entropy."""
    return min((*judge(model, smaller, batches), smaller) for smaller in removals(model, row, groups))
