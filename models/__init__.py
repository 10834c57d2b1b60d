"""Networks whose depth is chosen at run time.

model = models.resnet50(num_classes=1000)
logits = model(images, skip=(True, True, False, False))     # one of 2^4 sub-networks; None is the super-net
"""

from . import zoo
from .adaptive import AdaptiveDepth
from .convnext import convnext_base, convnext_small, convnext_tiny
from .mobilenetv2 import mobilenet_v2
from .registry import MODELS, build
from .regnet import regnet_y_3_2gf, regnet_y_400mf
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
from .resnet_small import resnet20, resnet32, resnet56
from .skip import parse_skips
from .subnet import Cost, cost, extract, subnet_name
from .swin_transformer import swin_b, swin_s, swin_t, swin_v2_b, swin_v2_s, swin_v2_t
from .vision_transformer import vit_b_16, vit_b_32, vit_l_16
from .weights import WeightsError, load_plain, load_state, model_state, num_classes, read_checkpoint

__all__ = [
    "MODELS",
    "AdaptiveDepth",
    "Cost",
    "WeightsError",
    "build",
    "convnext_base",
    "convnext_small",
    "convnext_tiny",
    "cost",
    "extract",
    "load_plain",
    "load_state",
    "mobilenet_v2",
    "model_state",
    "num_classes",
    "parse_skips",
    "read_checkpoint",
    "regnet_y_3_2gf",
    "regnet_y_400mf",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet50vd",
    "resnet56",
    "resnet101",
    "resnet101vd",
    "resnet152",
    "resnext50_32x4d",
    "subnet_name",
    "swin_b",
    "swin_s",
    "swin_t",
    "swin_v2_b",
    "swin_v2_s",
    "swin_v2_t",
    "vit_b_16",
    "vit_b_32",
    "vit_l_16",
    "wide_resnet50_2",
    "zoo",
]
