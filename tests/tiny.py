"""One small network of every family, for properties that hold at any width."""

import torch
from torch import nn

import models

TINY = {
    "resnet18": {},
    "resnet50": {"width_per_group": 16},
    "resnet50vd": {"width_per_group": 16},
    "resnext50_32x4d": {"groups": 8},
    "resnet20": {"width": 8},
    "mobilenet_v2": {"width_mult": 0.5},
    "vit_b_16": {"image_size": 32, "patch_size": 8, "hidden_dim": 32, "num_heads": 2, "mlp_dim": 64},
    "swin_t": {"embed_dim": 12, "num_heads": [1, 2, 3, 4]},
    "swin_v2_t": {"embed_dim": 12, "num_heads": [1, 2, 3, 4]},
    "convnext_tiny": {"stochastic_depth_prob": 0.1},
    "regnet_y_400mf": {},
    "regnet_y_3_2gf": {},
}
SIZE = 32


def tiny(name: str, **kwargs: object) -> models.AdaptiveDepth:
    """A network whose every tensor matters: nothing is left at zero, twins differ."""
    torch.manual_seed(0)
    model = models.build(name, **{"num_classes": 7, **TINY[name], **kwargs})
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 1 or isinstance(module, nn.LayerNorm):
                parameter.data.add_(0.2 * torch.randn_like(parameter))
        for buffer_name, buffer in module.named_buffers(recurse=False):
            if buffer_name in ("running_mean", "running_var"):
                buffer.add_(0.2 * torch.rand_like(buffer))
    for parameter in model.parameters():
        if not parameter.any() or parameter.abs().max() < 1e-4:
            parameter.data.add_(0.5 * torch.randn_like(parameter))
    return model.eval()


def batch(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
