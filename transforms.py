"""Augmentations of a whole batch, on the device: torchvision's mixup and cutmix, drawn from a generator of ours."""

import torch
from torch import Tensor
from torchvision.transforms import v2

from utils.rng import seeded


class BatchMix:
    """Mix each image with its neighbour in the batch; the targets become soft. Nothing happens when both alphas are 0.

    With both alphas above 0 each batch gets one of the two, with equal chance. All draws are made on the CPU from the
    generator handed in: the same generator gives the same batch again, and nothing waits for the device.
    """

    def __init__(self, num_classes: int, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0):
        self.choices = []
        if mixup_alpha > 0:
            self.choices.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_classes))
        if cutmix_alpha > 0:
            self.choices.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes))

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self.choices:
            return images, targets
        choice, seed = torch.randint(2**31, (2,), generator=generator).tolist()
        with seeded(seed):
            mixed, targets = self.choices[choice % len(self.choices)](images, targets)
        return mixed.contiguous(memory_format=_memory_format(images)), targets  # rolling the batch forgets its layout


def _memory_format(images: Tensor) -> torch.memory_format:
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
