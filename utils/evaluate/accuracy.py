"""Accuracy of one, several or all sub-networks of a model, in one pass over the data.

Correct answers are counted as integers on the device and summed over the processes once at the end, so the figures are
exact whatever the number of processes, the size of the shards or of the last batch. Nothing waits for the device inside
the loop. A sub-network is whatever value the model understands.
"""

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from utils.errors import UserError
from utils.processes import is_main, sum_over_processes, world_size

log = logging.getLogger(__name__)

NAMES_SHOWN = 10  # corrupt files named in one message


@dataclass(frozen=True)
class Result:
    """What one sub-network did on all images of all processes."""

    images: int
    correct1: int
    correct5: int
    loss: float  # mean cross entropy
    corrupt: tuple[str, ...] = ()  # files that could not be decoded and were left out

    @property
    def top1(self) -> float:
        return 100.0 * self.correct1 / self.images if self.images else 0.0

    @property
    def top5(self) -> float:
        return 100.0 * self.correct5 / self.images if self.images else 0.0

    def __str__(self) -> str:
        return f"Acc@1 {self.top1:.3f} Acc@5 {self.top5:.3f}"


class _Counts:
    """Running sums of this process, one row per sub-network, kept on the device."""

    def __init__(self, rows: int, device: torch.device):
        self.correct = torch.zeros(rows, 2, dtype=torch.int64, device=device)
        self.loss = torch.zeros(rows, dtype=torch.float64, device=device)
        self.images = 0

    def add(self, row: int, logits: Tensor, targets: Tensor) -> None:
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        self.correct[row, 0] += hits[:, 0].sum()
        self.correct[row, 1] += hits.sum()
        self.loss[row] += F.cross_entropy(logits.double(), targets, reduction="sum")

    def summed(self, corrupt: int) -> list[float]:
        """Everything in one all-reduce: integers are exact in a double up to 2^53."""
        mine = torch.tensor([self.images, corrupt], dtype=torch.float64, device=self.loss.device)
        packed = torch.cat([mine, self.correct.flatten().double(), self.loss])
        return sum_over_processes(packed).tolist()


def evaluate(
    model: nn.Module,
    loader,
    subnets: Sequence[Hashable],
    prepare: Callable,
    autocast: Callable = contextlib.nullcontext,
    on_corrupt: str = "skip",
) -> dict[Hashable, Result]:
    """Evaluate `subnets` on every image that `loader`s of all processes hold; the same results in every process.

    `prepare(batch)` gives (images on the device, targets on the device); `autocast()` is entered around each forward.
    Files that cannot be decoded are reported and left out, or with on_corrupt="error" are a UserError in every process.
    """
    device = next(model.parameters()).device
    counts, corrupt = _Counts(len(subnets), device), []
    bar = tqdm(loader, desc="evaluating", unit="batch", leave=False, disable=None if is_main() else True)
    with eval_mode(model), torch.inference_mode():
        for batch in bar:
            corrupt.extend(batch.corrupt)
            if corrupt and on_corrupt == "error":
                break  # still joins the reduction below, so that no process waits for this one
            if len(batch.images) == 0:
                continue
            images, targets = prepare(batch)
            with autocast():
                logits = forward(model, images, subnets)
            for row, subnet in enumerate(subnets):
                counts.add(row, logits[subnet], targets)
            counts.images += len(batch.images)
    images, corrupt_count, *sums = counts.summed(len(corrupt))
    names = _report_corrupt(corrupt, int(corrupt_count), on_corrupt)
    expected = len(loader.dataset) - len(names)
    if images != expected:
        raise RuntimeError(f"evaluated {images:.0f} images, expected {expected}: the sampler lost or repeated some")
    losses = sums[2 * len(subnets) :]
    return {
        subnet: Result(int(images), int(sums[2 * row]), int(sums[2 * row + 1]), losses[row] / max(images, 1), names)
        for row, subnet in enumerate(subnets)
    }


def forward(model: nn.Module, images: Tensor, subnets: Sequence[Hashable]) -> dict[Hashable, Tensor]:
    if len(subnets) == 1:
        return {subnets[0]: model(images, subnets[0])}
    return model.forward_all(images, subnets)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is again in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _report_corrupt(mine: list[str], total: int, on_corrupt: str) -> tuple[str, ...]:
    """The names of all processes' corrupt files; asks the others only when there are any."""
    if not total:
        return ()
    gathered = [mine]
    if world_size() > 1:
        gathered = [None] * world_size()
        dist.all_gather_object(gathered, mine)
    names = tuple(sorted(name for part in gathered for name in part))
    shown = ", ".join(names[:NAMES_SHOWN])
    if len(names) > NAMES_SHOWN:
        shown += f" and {len(names) - NAMES_SHOWN} more"
    if on_corrupt == "error":
        raise UserError(f"cannot read {shown}: mend or remove the file, or leave it out with --on-corrupt skip")
    if is_main():
        log.warning("%d corrupt images left out of the evaluation: %s", len(names), shown)
    return names
