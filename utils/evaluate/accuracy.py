"""Accuracy of one, several or all sub-networks of a model, in one pass over the data.

Correct answers are counted on the device and summed over the processes once at the end, so the figures are exact
whatever the number of processes, the size of the shards or of the last batch. Nothing waits for the device inside the
loop. Of the model only the contract of networks is used.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from utils.data.loading import first_few
from utils.errors import UserError
from utils.processes import gather_objects, is_main

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What one sub-network did on all images of all processes."""

    images: int
    correct1: int
    correct5: int
    loss: float  # mean cross entropy
    corrupt: tuple[str, ...] = ()  # files that could not be decoded and were left out
    macs: float | None = None  # mean of an image, where images differ in it

    @property
    def top1(self) -> float:
        return 100.0 * self.correct1 / self.images if self.images else 0.0

    @property
    def top5(self) -> float:
        return 100.0 * self.correct5 / self.images if self.images else 0.0

    @property
    def figures(self) -> dict[str, float]:
        """For the log, the main one first."""
        return {"acc1": self.top1, "acc5": self.top5, "loss": self.loss}

    def __str__(self) -> str:
        spent = "" if self.macs is None else f" at {self.macs / 1e9:.4f} GMACs an image"
        return f"Acc@1 {self.top1:.3f} Acc@5 {self.top5:.3f}{spent}"


def evaluate(
    model: nn.Module,
    loader,
    subnets: Sequence[Hashable],
    on_device: Callable,
    autocast: Callable = contextlib.nullcontext,
    on_corrupt: str = "skip",
    keep: Callable[[list[Tensor]], None] | None = None,
) -> dict[Hashable, Result]:
    """Evaluate `subnets` on every image that the `loader`s of all processes hold; the same results in every process.

    `on_device(loader)` yields the loader's batches with float images, on the device. Files that cannot be decoded are
    reported and left out, or with on_corrupt="error" are a UserError in every process. `keep` is given each batch's
    logits, if anybody wants them.
    """
    sums = torch.zeros(len(subnets), 4, dtype=torch.float64, device=next(model.parameters()).device)
    images, corrupt = 0, []
    off = None if is_main() else True
    bar = tqdm(on_device(loader), desc="evaluating", total=len(loader), unit="batch", leave=False, disable=off)
    with running(model, autocast):
        for batch in bar:
            corrupt.extend(batch.corrupt)
            if corrupt and on_corrupt == "error":
                break  # still joins the others below, so that no process waits for this one
            if len(batch.targets) == 0:
                continue
            found = logits_of(model, batch.images, subnets)
            for subnet, logits, of_subnet in zip(subnets, found, sums, strict=True):
                macs = model.image_macs(model.images_for(batch.images, subnet), subnet)
                of_subnet += _sums(logits, batch.targets, macs)
            images += len(batch.targets)
            if keep:
                keep(found)
    return _of_all_processes(subnets, sums, images, corrupt, on_corrupt, len(loader.dataset))


def _of_all_processes(
    subnets: Sequence[Hashable], sums: Tensor, images: int, corrupt: list[str], on_corrupt: str, expected: int
) -> dict[Hashable, Result]:
    """The results, of what each process has counted. Together they have read, or tried to read, `expected` images."""
    counts, unread, parts = zip(*gather_objects((images, corrupt, sums.cpu())), strict=True)
    images, names = sum(counts), tuple(sorted(itertools.chain(*unread)))
    if names:
        shown = first_few(names, 10)
        if on_corrupt == "error":
            raise UserError(f"cannot read {shown}: mend or remove the file, or leave it out with --on-corrupt skip")
        if is_main():
            log.warning("%d corrupt images left out of the evaluation: %s", len(names), shown)
    expected -= len(names)
    if images != expected:
        raise RuntimeError(f"evaluated {images} images, expected {expected}: the sampler lost or repeated some")
    results, several = {}, max(images, 1)
    for subnet, (right1, right5, loss, macs) in zip(subnets, sum(parts).tolist(), strict=True):
        results[subnet] = Result(images, int(right1), int(right5), loss / several, names, macs / several or None)
    return results


def _sums(logits: Tensor, targets: Tensor, macs: Tensor | None) -> Tensor:
    """Right at once, right in five, loss, cost; integers are exact in a double up to 2^53."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
    loss = F.cross_entropy(logits.double(), targets, reduction="sum")
    return torch.stack([hits[:, 0].sum(), hits.sum(), loss, loss.new_zeros(()) if macs is None else macs.sum()])


@contextlib.contextmanager
def running(model: nn.Module, autocast: Callable) -> Iterator[None]:
    """Evaluation mode without gradients inside; afterwards every module is again in the mode it was in.

    One autocast around all calls keeps the weights that it has cast. It drops them where it is left, and in
    torch.inference_mode it keeps none: every call would cast them all again.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), autocast():
            yield
    finally:
        for module, training in modes:
            module.training = training


def logits_of(model: nn.Module, images: Tensor | list[Tensor], subnets: Sequence[Hashable]) -> list[Tensor]:
    """Each sub-network's logits, in float32 whatever the precision inside."""
    logits = model.forward_all(images, subnets)
    return [logits[subnet].float() for subnet in subnets]
