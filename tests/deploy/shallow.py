"""A narrow and shallow network of every family: exporting takes long, by the number of blocks. Twins differ."""

from collections.abc import Callable

import torch
from torchvision.models.resnet import Bottleneck

import models
from models.convnext import AdaptiveConvNeXt
from models.mobilenetv2 import AdaptiveMobileNetV2
from models.regnet import AdaptiveRegNet
from models.resnet import AdaptiveResNet
from models.swin_transformer import AdaptiveSwin
from models.vision_transformer import AdaptiveVisionTransformer
from tests.filled import filled

SIZE = 32
GROUPS = [[2, 8, 1, 1], [2, 8, 2, 2], [2, 16, 2, 2], [2, 24, 2, 1], [2, 32, 1, 1]]
SWIN = {"embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
VIT = {"image_size": SIZE, "patch_size": 8, "num_layers": 8, "hidden_dim": 16, "num_heads": 2, "mlp_dim": 32}

FAMILIES: dict[str, Callable[..., models.AdaptiveDepth]] = {
    "resnet": lambda n: AdaptiveResNet(Bottleneck, (2, 2, 2, 2), stem="small", width_per_group=4, num_classes=n),
    "mobilenet": lambda n: AdaptiveMobileNetV2(inverted_residual_setting=GROUPS, num_classes=n),
    "vit": lambda n: AdaptiveVisionTransformer(**VIT, num_classes=n),
    "swin": lambda n: AdaptiveSwin(**SWIN, num_classes=n),
    "convnext": lambda n: AdaptiveConvNeXt((8, 16, 24), (2, 2, 2), num_classes=n),
    "regnet": lambda n: AdaptiveRegNet(8, 16, 12, 2.2, 8, num_classes=n),
}


def shallow(family: str, classes: int = 7) -> models.AdaptiveDepth:
    model = FAMILIES[family](classes)
    model.load_state_dict(filled(model.state_dict()))
    return model.eval()


def batch(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))
