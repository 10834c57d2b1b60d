"""Skip-aware self-distillation: one training step as a short list of passes.

A pass runs one sub-network and pulls its outputs towards the labels or towards the outputs of an earlier pass. Other
methods differ only in their list; this file knows nothing of what a sub-network is.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LABELS = "labels"


@dataclass(frozen=True)
class Pass:
    """Run `subnet` and compare it with `target`: LABELS, or the number of an earlier pass."""

    subnet: Hashable
    target: str | int
    weight: float


def adn_passes(super_net: Hashable, base_net: Hashable, alpha: float = 0.5) -> list[Pass]:
    """Algorithm 1 of the paper: the super-net learns from the labels, the base-net from the super-net."""
    return [Pass(super_net, LABELS, alpha), Pass(base_net, 0, 1 - alpha)]


def undistilled_passes(super_net: Hashable, base_net: Hashable, alpha: float = 0.5) -> list[Pass]:
    """The paper's ablation (Table 4): both learn from the labels."""
    return [Pass(super_net, LABELS, alpha), Pass(base_net, LABELS, 1 - alpha)]


def individual_passes(subnet: Hashable) -> list[Pass]:
    """One network alone, as without this method."""
    return [Pass(subnet, LABELS, 1.0)]


@dataclass
class Outputs:
    """What a pass gives: logits and, with feature distillation, each stage's mean over space."""

    logits: Tensor
    features: list[Tensor]


@dataclass
class PassResult:
    """What a pass leaves for the log. `loss` carries the pass's weight."""

    loss: Tensor
    logits: Tensor


class SelfDistillation:
    """The losses between two networks: KL of the logits and, with `features`, of the stages' mean features."""

    def __init__(self, temperature: float = 1.0, topk: int = 500, features: bool = False) -> None:
        self.temperature = temperature
        self.topk = topk
        self.features = features

    def __call__(self, student: Outputs, teacher: Outputs) -> Tensor:
        loss = self.logit_loss(student.logits, teacher.logits)
        if self.features:
            loss = loss + self.feature_loss(student.features, teacher.features)
        return loss

    def logit_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL over the teacher's `topk` likeliest classes; over all if that is 0 or more than there are."""
        if 0 < self.topk < teacher.shape[1]:
            teacher, classes = teacher.topk(self.topk, dim=1)
            student = student.gather(1, classes)
        return self._divergence(student, teacher)

    def feature_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """KL over the channels of each stage but the first, summed."""
        return sum(self._divergence(s, t) for s, t in zip(student[1:], teacher[1:], strict=True))

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        t = self.temperature
        # Autocast runs all of it in float32.
        return F.kl_div(F.log_softmax(student / t, dim=1), F.softmax(teacher / t, dim=1), reduction="batchmean") * t**2


class TrainingStep:
    """Forward and backward of every pass in turn, so that only one pass's activations are in memory at a time.

    Gradients are those of the sum of the weighted losses, because a teacher's outputs are detached. What all passes
    begin with runs once: their gradients gather at its output, and it is differentiated when all passes are done.
    """

    def __init__(
        self,
        model: nn.Module,
        passes: Sequence[Pass],
        criterion: Callable[[Tensor, Tensor], Tensor],
        distillation: SelfDistillation,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.model = model
        self.passes = passes
        self.criterion = criterion
        self.distillation = distillation
        self.autocast = autocast
        self.teachers = {p.target for p in passes if p.target != LABELS}

    def __call__(self, images: Tensor, labels: Tensor, backward: Callable[[Tensor], None]) -> list[PassResult]:
        """Accumulate the gradients of all passes; `backward` is called with each pass's weighted loss."""
        kept: dict[int, Outputs] = {}
        results = []
        with self.autocast():
            shared = self.model.embed(images, networks=len(self.passes))
        start = tuple(h.detach().requires_grad_(h.requires_grad) for h in shared)
        for number, this in enumerate(self.passes):
            with self.autocast():
                outputs = self._forward(start, this, number)
                loss = this.weight * self._loss(outputs, labels, kept.get(this.target))
            backward(loss)
            detached = Outputs(outputs.logits.detach(), [f.detach() for f in outputs.features])
            if number in self.teachers:
                kept[number] = detached
            results.append(PassResult(loss.detach(), detached.logits))
        gathered = [(h, begin.grad) for h, begin in zip(shared, start, strict=True) if begin.grad is not None]
        if gathered:
            torch.autograd.backward(*zip(*gathered, strict=True))
        return results

    def _forward(self, start: tuple[Tensor, ...], this: Pass, number: int) -> Outputs:
        if self.distillation.features and (number in self.teachers or this.target != LABELS):
            logits, features = self.model(start, this.subnet, return_features=True, embedded=True)
            return Outputs(logits, [feature.mean(dim=(2, 3)) for feature in features])
        return Outputs(self.model(start, this.subnet, embedded=True), [])

    def _loss(self, outputs: Outputs, labels: Tensor, teacher: Outputs | None) -> Tensor:
        return self.criterion(outputs.logits, labels) if teacher is None else self.distillation(outputs, teacher)
