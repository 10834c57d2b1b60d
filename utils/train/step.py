"""The passes of one training step, forward and backward in turn: one pass's activations are in memory at a time.

Gradients are those of the sum of all losses, because a teacher's outputs are detached. DistributedDataParallel averages
them over the processes once a step, while the last backward runs: all passes but that one run under its `no_sync`.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils import processes
from utils.train.passes import LABELS, Outputs, Pass

MOST = 256  # sub-networks that are remembered: those drawn from a range are ever new


class PassResult(NamedTuple):
    """What a pass leaves for the log. `loss` carries the pass's weights."""

    loss: Tensor
    logits: Tensor
    weight: float  # the sum of the pass's weights


def ask_classifier(
    model: nn.Module, images: Tensor, labels: Tensor | None, subnet: Hashable, taken: Callable[[Tensor], Tensor] | None
) -> Outputs:
    """What a pass has of a network: logits and, if `taken` takes something of features, this.

    `labels` are None where the pass does not learn from them; a network that makes its loss itself needs them here.
    """
    if taken is None:
        return Outputs(model(images, subnet))
    logits, features = model(images, subnet, return_features=True)
    return Outputs(logits, [taken(feature) for feature in features])


@dataclass
class TrainingStep:
    """Call it with the passes and a batch: it accumulates gradients."""

    model: nn.Module  # perhaps wrapped for several processes
    criterion: Callable[[Tensor, Tensor], Tensor]  # logits, labels → loss
    distance: Callable[[Outputs, Outputs], Tensor] | None  # of a student from its teacher
    autocast: Callable[[], AbstractContextManager]
    ask: Callable[..., Outputs] = ask_classifier
    reached: dict[Hashable, set[int]] = field(default_factory=dict)  # by sub-network: the parameters that it uses

    @property
    def network(self) -> nn.Module:
        return getattr(self.model, "module", self.model)

    def reaches_all(self, passes: Sequence[Pass]) -> bool:
        """Whether these passes give every parameter that is trained a gradient."""
        if len(self.reached) > MOST:
            self.reached.clear()
        left = {id(parameter) for parameter in self.network.parameters() if parameter.requires_grad}
        for subnet in (this.subnet for this in passes):
            if not left:  # often the first one, the largest, reaches all
                break
            if subnet not in self.reached:
                self.reached[subnet] = {id(parameter) for parameter in self.network.view(subnet).parameters()}
            left -= self.reached[subnet]
        return not left

    def __call__(
        self,
        passes: Sequence[Pass],
        images: Tensor | Sequence[Tensor],
        labels: Tensor,
        backward: Callable[[Tensor], None],
        reduce: bool = True,
    ) -> list[PassResult]:
        """`backward` is called with each pass's loss. `reduce`: whether the step ends here, after no further batch."""
        distributed = isinstance(self.model, DistributedDataParallel)
        teachers = {target for this in passes for target, _ in this.targets if target != LABELS}
        known: dict = {}  # outputs of teachers: by the number of the pass, or by (frozen teacher, images)
        results = []
        for number, this in enumerate(passes):
            last = reduce and number == len(passes) - 1
            view = self.network.images_for(images, this.subnet) if this.view is None else images[this.view]
            distils = number in teachers or any(target != LABELS for target, _ in this.targets)
            with self.model.no_sync() if distributed and not last else nullcontext():
                with self.autocast():
                    taken = getattr(self.distance, "features", None) if distils else None
                    wanted = labels if any(target == LABELS for target, _ in this.targets) else None
                    outputs = self.ask(self.model, view, wanted, this.subnet, taken)
                    loss = self._loss(outputs, this, view, labels, known)
                backward(loss)
            if number in teachers:
                known[number] = outputs.detach()
            weight = sum(weight for _, weight in this.targets)
            results.append(PassResult(loss.detach(), outputs.logits.detach(), weight))
        return results

    def _loss(self, outputs: Outputs, this: Pass, images: Tensor, labels: Tensor, known: dict) -> Tensor:
        """The sum over the pass's targets. A frozen teacher sees each view once a step."""
        losses = []
        for target, weight in this.targets:
            if target == LABELS:
                losses.append(weight * self.criterion(outputs.logits, labels))
                continue
            key = (target, id(images)) if callable(target) else target
            if key not in known:
                with torch.no_grad():
                    known[key] = target(images, labels)
            losses.append(weight * self.distance(outputs, known[key]))
        return sum(losses[1:], start=losses[0])


def share_gradients(model: nn.Module) -> nn.Module:
    """The network as the training step calls it: several processes average their gradients, and start alike.

    A step's last pass does not use every parameter, so unused ones must be looked for; gradients of earlier passes lie
    in the buckets that are reduced then. Running statistics are each process's own until an evaluation.
    """
    if processes.world_size() == 1:
        return model
    settings = {"find_unused_parameters": True, "gradient_as_bucket_view": True, "broadcast_buffers": False}
    with warnings.catch_warnings():  # of torch 2.13: who wants no buffers from rank 0 goes on so
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(model, **settings)
