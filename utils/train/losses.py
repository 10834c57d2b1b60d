"""How far a student's outputs are from its teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor


@dataclass
class Outputs:
    """What a network gives: logits and, for feature distillation, each stage's mean over space."""

    logits: Tensor
    features: list[Tensor] = field(default_factory=list)

    def detach(self) -> "Outputs":
        return Outputs(self.logits.detach(), [feature.detach() for feature in self.features])


class Distillation:
    """KL divergence of the logits and, with `features`, of the stages' mean features, at a temperature.

    Of the logits over the teacher's `topk` likeliest classes; over all if that is 0 or more than there are.
    """

    def __init__(self, temperature: float = 1.0, topk: int = 500, features: bool = False) -> None:
        self.temperature = temperature
        self.topk = topk
        self.features = features

    def __call__(self, student: Outputs, teacher: Outputs) -> Tensor:
        ours, theirs = student.logits, teacher.logits
        if 0 < self.topk < theirs.shape[1]:
            theirs, classes = theirs.topk(self.topk, dim=1)
            ours = ours.gather(1, classes)
        loss = self.divergence(ours, theirs)
        return loss + self.feature_loss(student.features, teacher.features) if self.features else loss

    def feature_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """KL over the channels of each stage but the first, summed."""
        return sum(self.divergence(s, t) for s, t in zip(student[1:], teacher[1:], strict=True))

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        t = self.temperature
        # autocast runs all of it in float32
        return F.kl_div(F.log_softmax(student / t, dim=1), F.softmax(teacher / t, dim=1), reduction="batchmean") * t**2
