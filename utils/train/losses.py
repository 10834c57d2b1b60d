"""How far a student's outputs are from its teacher's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError


def mean_over_space(feature: Tensor) -> Tensor:
    return feature.mean(dim=(2, 3))


class Outputs(NamedTuple):
    """What a network gives: logits and, where they are asked for, what was taken of its features."""

    logits: Tensor
    features: list[Tensor] | tuple = ()

    def detach(self) -> "Outputs":
        return Outputs(self.logits.detach(), [feature.detach() for feature in self.features])


@dataclass
class Distillation:
    """KL divergence of the logits and, if `features` takes something of each stage's, of these, at a temperature.

    Of the logits over the teacher's `topk` likeliest classes; over all if that is 0 or more than there are. Of the
    features over the channels of each stage but the first, summed.
    """

    temperature: float = 1.0
    topk: int = 500
    features: Callable[[Tensor], Tensor] | None = None

    def __call__(self, student: Outputs, teacher: Outputs) -> Tensor:
        if self.features and not teacher.features:
            raise UserError("--fpn: the stages of this network give no features to distil; leave it out")
        ours, theirs = student.logits, teacher.logits
        if 0 < self.topk < theirs.shape[1]:
            theirs, classes = theirs.topk(self.topk, dim=1)
            ours = ours.gather(1, classes)
        loss = self.divergence(ours, theirs)
        if self.features:
            pairs = zip(student.features[1:], teacher.features[1:], strict=True)
            loss = loss + sum(self.divergence(ours, theirs) for ours, theirs in pairs)
        return loss

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        t = self.temperature
        # autocast runs all of it in float32
        return F.kl_div(F.log_softmax(student / t, dim=1), F.softmax(teacher / t, dim=1), reduction="batchmean") * t**2


@dataclass
class PyramidDistance:
    """KL divergence of the channels at each place of each level of a feature pyramid: its mean over places, summed."""

    temperature: float = 1.0

    def features(self, level: Tensor) -> Tensor:
        return level

    def __call__(self, student: Outputs, teacher: Outputs) -> Tensor:
        pairs = zip(student.features, teacher.features, strict=True)
        return sum(self.divergence(_places(ours), _places(theirs)) for ours, theirs in pairs)

    divergence = Distillation.divergence


def _places(level: Tensor) -> Tensor:
    return level.movedim(1, -1).flatten(0, -2)
