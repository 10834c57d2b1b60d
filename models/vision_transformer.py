"""Adaptive-depth ViTs: the encoder blocks are grouped in four stages of equal length.

A group is split by the rule of every stage, so of b/16's and b/32's 3 blocks the last is skippable (2, 5, 8, 11), and
of l/16's 6 blocks the last three (3-5, 9-11, 15-17, 21-23).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import vision_transformer

from .adaptive import AdaptiveDepth, Stage
from .registry import network

STAGES = 4


class AdaptiveVisionTransformer(AdaptiveDepth, vision_transformer.VisionTransformer):
    settings = ("image_size", "patch_size")

    def __init__(self, *, patch_size: int, image_size: int = 224, **kwargs: Any) -> None:
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        super().__init__(image_size=image_size, patch_size=patch_size, **kwargs)
        self.adapt()

    def _embed(self, x: Tensor) -> Tensor:
        patches = self._process_input(x)
        x = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.encoder.dropout(x + self.encoder.pos_embedding)

    def _body(self) -> Iterable[nn.Module]:
        layers = self.encoder.layers
        length = len(layers) // STAGES
        return [Stage(*layers[i : i + length]) for i in range(0, len(layers), length)]

    def _feature_map(self, x: Tensor) -> Tensor:
        side = self.image_size // self.patch_size
        return x[:, 1:].transpose(1, 2).unflatten(2, (side, side))

    def _classify(self, x: Tensor) -> Tensor:
        return self.heads(self.encoder.ln(x)[:, 0])


BASE = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072}
LARGE = {"num_layers": 24, "num_heads": 16, "hidden_dim": 1024, "mlp_dim": 4096}

network("vit_b_16", AdaptiveVisionTransformer, patch_size=16, **BASE)
network("vit_b_32", AdaptiveVisionTransformer, patch_size=32, **BASE)
network("vit_l_16", AdaptiveVisionTransformer, patch_size=16, **LARGE)
