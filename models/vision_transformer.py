"""Adaptive-depth ViTs: the encoder blocks are grouped in four stages of equal length.

A group is split by the rule of every stage, so of b/16's and b/32's 3 blocks the last is skippable (2, 5, 8, 11), and
of l/16's 6 blocks the last three (3-5, 9-11, 15-17, 21-23).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import vision_transformer

from .adaptive import AdaptiveDepth, Mandatory, make_mandatory, mandatory_count
from .registry import network

STAGES = 4


class MandatoryEncoderBlock(Mandatory, vision_transformer.EncoderBlock):
    """ln_1 and ln_2 have twins."""


class AdaptiveVisionTransformer(AdaptiveDepth, vision_transformer.VisionTransformer):
    def __init__(self, *, image_size: int = 224, switchable_norms: bool = True, **kwargs: Any) -> None:
        if image_size % kwargs["patch_size"]:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {kwargs['patch_size']}")
        super().__init__(image_size=image_size, **kwargs)
        for group in self._paths():
            for block in group[: mandatory_count(len(group))]:
                make_mandatory(block, switchable_norms)

    def _embed(self, x: Tensor) -> Tensor:
        patches = self._process_input(x)
        x = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.encoder.dropout(x + self.encoder.pos_embedding)

    def _paths(self) -> Sequence[Sequence[nn.Module]]:
        blocks = list(self.encoder.layers)
        length = len(blocks) // STAGES
        return [blocks[i : i + length] for i in range(0, len(blocks), length)]

    def _feature_map(self, x: Tensor) -> Tensor:
        side = self.image_size // self.patch_size
        return x[:, 1:].transpose(1, 2).unflatten(2, (side, side))

    def _classify(self, x: Tensor, skip: bool) -> Tensor:
        return self.heads(self.encoder.ln(x)[:, 0])


def _vit(size: str, **kwargs: Any) -> AdaptiveVisionTransformer:
    layers, heads, hidden, mlp = {"b": (12, 12, 768, 3072), "l": (24, 16, 1024, 4096)}[size]
    config = {"num_layers": layers, "num_heads": heads, "hidden_dim": hidden, "mlp_dim": mlp}
    return AdaptiveVisionTransformer(**{**config, **kwargs})


@network("image_size", "patch_size")
def vit_b_16(**kwargs: Any) -> AdaptiveVisionTransformer:
    return _vit("b", **{"patch_size": 16, **kwargs})


@network("image_size", "patch_size")
def vit_b_32(**kwargs: Any) -> AdaptiveVisionTransformer:
    return _vit("b", **{"patch_size": 32, **kwargs})


@network("image_size", "patch_size")
def vit_l_16(**kwargs: Any) -> AdaptiveVisionTransformer:
    return _vit("l", **{"patch_size": 16, **kwargs})
