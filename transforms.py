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
        kinds = ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
        self.choices = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]

    def __call__(
        self, images: Tensor | list[Tensor], targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor | list[Tensor], Tensor]:
        if not self.choices:
            return images, targets
        choice, seed = torch.randint(2**31, (2,), generator=generator).tolist()
        mixed = []
        for view in [images] if isinstance(images, Tensor) else images:  # each with the same neighbour and share
            with seeded(seed):
                one, soft = self.choices[choice % len(self.choices)](view, targets)
            layout = torch.contiguous_format if view.is_contiguous() else torch.channels_last
            mixed.append(one.contiguous(memory_format=layout))  # rolling the batch forgets its layout
        return mixed[0] if isinstance(images, Tensor) else mixed, soft
