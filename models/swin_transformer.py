"""Adaptive-depth Swin transformers, versions 1 and 2.

The patch embedding is `pre`; `features` alternates stage, merge, stage, … A patch merging belongs to the stage behind
it: it follows that stage's flag and has a norm for either.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import swin_transformer as swin

from .adaptive import AdaptiveDepth, Mandatory, make_mandatory, split
from .registry import network


class MandatorySwinBlock(Mandatory, swin.SwinTransformerBlock):
    """norm1 and norm2 have twins."""


class MandatorySwinBlockV2(Mandatory, swin.SwinTransformerBlockV2):
    """norm1 and norm2 have twins."""


class MandatoryPatchMerging(Mandatory, swin.PatchMerging):
    """norm has a twin."""


class MandatoryPatchMergingV2(Mandatory, swin.PatchMergingV2):
    """norm has a twin."""


class AdaptiveSwin(AdaptiveDepth, swin.SwinTransformer):
    def __init__(self, *, switchable_norms: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pre, *modules = self.features
        self.features = nn.Sequential(
            *(
                (split if isinstance(module, nn.Sequential) else make_mandatory)(module, switchable_norms)
                for module in modules
            )
        )

    def _embed(self, x: Tensor) -> Tensor:
        return self.pre(x)

    def _paths(self) -> Sequence[Sequence[nn.Module]]:
        first, *others = self.features
        return [[first], *zip(others[::2], others[1::2], strict=True)]

    def _tidy_plain(self, plain: nn.Module) -> None:
        plain.features = nn.Sequential(plain.pre, *plain.features)
        del plain.pre

    def _feature_map(self, x: Tensor) -> Tensor:
        return self.permute(x)

    def _classify(self, x: Tensor, skip: bool) -> Tensor:
        return self.head(self.flatten(self.avgpool(self.permute(self.norm(x)))))


VERSION_1 = {"window_size": [7, 7]}
VERSION_2 = {"window_size": [8, 8], "block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "stochastic_depth_prob": 0.1}
SMALL = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "stochastic_depth_prob": 0.3}
BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "stochastic_depth_prob": 0.5}


def _swin(version: dict[str, Any], size: dict[str, Any], patch_size: int = 4, **kwargs: Any) -> AdaptiveSwin:
    config = {**version, **size, **kwargs}
    if isinstance(config["window_size"], int):
        config["window_size"] = [config["window_size"]] * 2
    return AdaptiveSwin(patch_size=[patch_size, patch_size], **config)


@network("patch_size", "window_size")
def swin_t(**kwargs: Any) -> AdaptiveSwin:
    return _swin(VERSION_1, TINY, **kwargs)


@network("patch_size", "window_size")
def swin_s(**kwargs: Any) -> AdaptiveSwin:
    return _swin(VERSION_1, SMALL, **kwargs)


@network("patch_size", "window_size")
def swin_b(**kwargs: Any) -> AdaptiveSwin:
    return _swin(VERSION_1, BASE, **kwargs)


@network("patch_size", "window_size")
def swin_v2_t(**kwargs: Any) -> AdaptiveSwin:
    return _swin(VERSION_2, TINY, **kwargs)


@network("patch_size", "window_size")
def swin_v2_s(**kwargs: Any) -> AdaptiveSwin:
    return _swin(VERSION_2, SMALL, **kwargs)


@network("patch_size", "window_size")
def swin_v2_b(**kwargs: Any) -> AdaptiveSwin:
    return _swin(VERSION_2, BASE, **kwargs)
