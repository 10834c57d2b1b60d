"""What a training step runs. A method (methods/) is its list of passes; the loop knows nothing more of it.

A pass runs one sub-network and pulls its outputs towards targets. Forward and backward follow each other pass by pass,
then the gradients are reduced once and the optimizer steps once. Imports no torch.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

LABELS = "labels"


class Outputs(NamedTuple):
    """What a network gives: logits and, where they are asked for, what was taken of its features. All are tensors."""

    logits: Any
    features: Sequence[Any] = ()

    def detach(self) -> "Outputs":
        return Outputs(self.logits.detach(), [feature.detach() for feature in self.features])


Target = str | int | Callable  # LABELS, the number of an earlier pass, or a frozen teacher: images, labels → Outputs


@dataclass(frozen=True)
class Pass:
    """Run `subnet` on a view of the batch. Its loss is the sum over `targets`: (what to come close to, weight)."""

    role: str  # what the log calls it
    subnet: Hashable
    targets: tuple[tuple[Target, float], ...]
    view: int | None = None  # of a batch that holds several, its number; None: the one of the sub-network's size


class Method(Protocol):
    """Made by the command from its arguments and the network. It may freeze what it does not train."""

    roles: Sequence[str]  # of the passes, alike in every step
    tested: dict[str, Hashable]  # sub-networks to test after each epoch, by name; the first decides what is best
    average: Any  # the run sets it: the moving average's network, or None; a frozen teacher if the method wants one
    distance: Any  # (student's Outputs, teacher's) → loss; its `features`, if any, takes what it needs of one

    def passes(self, epoch: int, step: int) -> Sequence[Pass]:
        """Of that step. What is drawn follows from (seed, epoch, step): alike in all processes and after a resume."""
