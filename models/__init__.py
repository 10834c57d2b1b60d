"""Networks whose depth is chosen at run time."""

from collections.abc import Callable
from typing import Any

from torch import nn

from .adaptive import AdaptiveDepth
from .resnet import (
    resnet18,
    resnet34,
    resnet50,
    resnet50vd,
    resnet101,
    resnet101vd,
    resnet152,
    resnext50_32x4d,
    wide_resnet50_2,
)
FAMILIES = (resnet18, resnet34, resnet50, resnet50vd, resnet101, resnet101vd, resnet152, resnext50_32x4d, wide_resnet50_2)
MODELS: dict[str, Callable[..., AdaptiveDepth]] = {function.__name__: function for function in FAMILIES}


def build(name: str, **kwargs: Any) -> AdaptiveDepth:
    """The network called `name`."""
    return MODELS[name](**kwargs)
