"""Adaptive-depth Swin transformers, versions 1 and 2.

The patch embedding is `pre`; `features` alternates stage, merge, stage, … A patch merging belongs to the stage behind
it: it follows that stage's flag and has a norm for either.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torchvision.models import swin_transformer as swin

from .adaptive import AdaptiveDepth, Stage
from .registry import network


class AdaptiveSwin(AdaptiveDepth, swin.SwinTransformer):
    settings = ("patch_size", "window_size")

    def __init__(self, *, patch_size: int = 4, window_size: int = 7, **kwargs: Any) -> None:
        super().__init__(patch_size=[patch_size] * 2, window_size=[window_size] * 2, **kwargs)
        self.pre, *modules = self.features
        self.features = nn.Sequential(*(Stage(*m) if isinstance(m, nn.Sequential) else m for m in modules))
        self.adapt()

    def _embed(self, x: Tensor) -> Tensor:
        return self.pre(x)

    def _body(self) -> Iterable[nn.Module]:
        return self.features

    def _tidy_plain(self, plain: nn.Module) -> None:
        plain.features = nn.Sequential(plain.pre, *plain.features)
        del plain.pre

    def _feature_map(self, x: Tensor) -> Tensor:
        return self.permute(x)

    def _classify(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.avgpool(self.permute(self.norm(x)))))


V2 = {"window_size": 8, "block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "stochastic_depth_prob": 0.1}
SMALL = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "stochastic_depth_prob": 0.3}
BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "stochastic_depth_prob": 0.5}

network("swin_t", AdaptiveSwin, **TINY)
network("swin_s", AdaptiveSwin, **SMALL)
network("swin_b", AdaptiveSwin, **BASE)
network("swin_v2_t", AdaptiveSwin, **V2, **TINY)
network("swin_v2_s", AdaptiveSwin, **V2, **SMALL)
network("swin_v2_b", AdaptiveSwin, **V2, **BASE)
