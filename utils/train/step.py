"""The passes of one training step, forward and backward in turn: one pass's activations are in memory at a time.

Gradients are those of the sum of all losses, because a teacher's outputs are detached. DistributedDataParallel averages
them over the processes once a step, while the last backward runs: all passes but that one run under its `no_sync`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils import processes
from utils.train.losses import Outputs
from utils.train.passes import LABELS, Pass


@dataclass
class PassResult:
    """What a pass leaves for the log. `loss` carries the pass's weights."""

    loss: Tensor
    logits: Tensor


class TrainingStep:
    """Call it with the passes and a batch: it accumulates gradients. `model` may be wrapped for several processes."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        distance: Callable[[Outputs, Outputs], Tensor] | None,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.distance = distance
        self.autocast = autocast

    def __call__(
        self,
        passes: Sequence[Pass],
        images: Tensor | Sequence[Tensor],
        labels: Tensor,
        backward: Callable[[Tensor], None],
        reduce: bool = True,
    ) -> list[PassResult]:
        """`backward` is called with each pass's loss. `reduce`: whether the step ends here, after no further batch."""
        views = [images] if isinstance(images, Tensor) else images
        teachers = {target for this in passes for target, _ in this.targets if target != LABELS}
        known: dict = {}  # outputs of teachers: by the number of the pass, or by (frozen teacher, view)
        results = []
        for number, this in enumerate(passes):
            last = reduce and number == len(passes) - 1
            distributed = isinstance(self.model, nn.parallel.DistributedDataParallel)
            with self.model.no_sync() if distributed and not last else nullcontext():
                with self.autocast():
                    distils = number in teachers or any(target != LABELS for target, _ in this.targets)
                    outputs = self._forward(views[this.view], this, distils)
                    loss = self._loss(outputs, this, views, labels, known)
                backward(loss)
            if number in teachers:
                known[number] = outputs.detach()
            results.append(PassResult(loss.detach(), outputs.logits.detach()))
        return results

    def _forward(self, images: Tensor, this: Pass, distils: bool) -> Outputs:
        if distils and getattr(self.distance, "features", False):
            logits, features = self.model(images, this.subnet, return_features=True)
            return Outputs(logits, [feature.mean(dim=(2, 3)) for feature in features])
        return Outputs(self.model(images, this.subnet))

    def _loss(self, outputs: Outputs, this: Pass, views: Sequence[Tensor], labels: Tensor, known: dict) -> Tensor:
        """The sum over the pass's targets. A frozen teacher sees each view once a step."""
        losses = []
        for target, weight in this.targets:
            if target == LABELS:
                losses.append(weight * self.criterion(outputs.logits, labels))
                continue
            key = (target, this.view) if callable(target) else target
            if key not in known:
                with torch.no_grad():
                    known[key] = target(views[this.view])
            losses.append(weight * self.distance(outputs, known[key]))
        return sum(losses[1:], start=losses[0])


def share_gradients(model: nn.Module) -> nn.Module:
    """The network as the training step calls it: several processes average their gradients, and start alike.

    A step's last pass does not use every parameter, so unused ones must be looked for; gradients of earlier passes lie
    in the buckets that are reduced then. Running statistics are each process's own until an evaluation.
    """
    if processes.world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model, find_unused_parameters=True, gradient_as_bucket_view=True, broadcast_buffers=False
    )
