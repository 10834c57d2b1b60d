"""How far a student's outputs are from its teacher's."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError
from utils.train.passes import Outputs


def mean_over_space(feature: Tensor) -> Tensor:
    return feature.mean(dim=(2, 3))


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
        loss = divergence(ours, theirs, self.temperature)
        if self.features:
            pairs = zip(student.features[1:], teacher.features[1:], strict=True)
            loss = loss + sum(divergence(ours, theirs, self.temperature) for ours, theirs in pairs)
        return loss


def divergence(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    """KL divergence at temperature `t`, the mean of the rows; autocast runs all of it in float32."""
    return F.kl_div(F.log_softmax(student / t, dim=1), F.softmax(teacher / t, dim=1), reduction="batchmean") * t**2


@dataclass
class PyramidDistance:
    """KL divergence of the channels at each place of each level of a feature pyramid: its mean over places, summed."""

    temperature: float = 1.0

    def features(self, level: Tensor) -> Tensor:
        return level

    def __call__(self, student: Outputs, teacher: Outputs) -> Tensor:
        pairs = zip(student.features, teacher.features, strict=True)
        return sum(divergence(_places(ours), _places(theirs), self.temperature) for ours, theirs in pairs)


def _places(level: Tensor) -> Tensor:
    return level.movedim(1, -1).flatten(0, -2)
