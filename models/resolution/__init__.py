"""Scale-adaptive networks (SAN, arXiv 2007.06181): one set of weights for several resolutions of the images.

Every kernel is affine in a scale encoding; norms are private to a trained resolution. The names of the weights are
those of the official code.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torchvision.models import mobilenetv2, resnet
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..mobilenetv2 import SMALL
from ..registry import network
from ..resnet_small import SmallResNet
from ..zoo import AdaptiveWeights, enter, released
from .scales import SIZES, ScaleAdaptive, numbered


class MetaResNet(ScaleAdaptive):
    """The stem's convolution is an ordinary one."""

    def __init__(
        self, make: Callable[..., nn.Module], *arguments: Any, sizes: Sequence[int] = SIZES, **kwargs: Any
    ) -> None:
        plain = make(*arguments, **kwargs)
        names = {plain.conv1: "conv1", plain.bn1: "bn1"}
        for path, module in plain.named_modules():
            if isinstance(module, (BasicBlock, Bottleneck)):
                names |= numbered(module, path)
        super().__init__(plain, names | {plain.fc: "fc"}, sizes)  # the classifier is the last matrix
        for name, module in plain.named_modules():
            if name.endswith("downsample") and isinstance(module, nn.Sequential):
                # never run, but in files of weights: the shortcut that runs is the last fc and bn of its block
                for number, layer in enumerate(module):
                    self._hold(f"{name}.{number}", layer).requires_grad_(False)


class MetaMobileNetV2(ScaleAdaptive):
    """The stem is generated too."""

    def __init__(self, *, sizes: Sequence[int] = SIZES, **kwargs: Any) -> None:
        plain = mobilenetv2.MobileNetV2(**{"dropout": 0.0, **kwargs})
        first, *blocks, last = plain.features
        names = numbered(first, "features.0", number=False) | numbered(last, "conv", number=False)
        for place, block in enumerate(blocks, start=1):
            names |= numbered(block, f"features.{place}")
        super().__init__(plain, names | {plain.classifier[-1]: "classifier"}, sizes)
        for module in self.modules():
            if getattr(module, "bias", None) is not None and module.weight.ndim == 2:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)


network("meta_resnet18", MetaResNet, resnet.ResNet, BasicBlock, [2, 2, 2, 2])
network("meta_resnet34", MetaResNet, resnet.ResNet, BasicBlock, [3, 4, 6, 3])
network("meta_resnet50", MetaResNet, resnet.ResNet, Bottleneck, [3, 4, 6, 3])
network("meta_resnet101", MetaResNet, resnet.ResNet, Bottleneck, [3, 4, 23, 3])
network("meta_resnet152", MetaResNet, resnet.ResNet, Bottleneck, [3, 8, 36, 3])
network("meta_resnext50_32x4d", MetaResNet, resnet.ResNet, Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=4)
network("meta_resnext101_32x8d", MetaResNet, resnet.ResNet, Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=8)
network("meta_resnet20", MetaResNet, SmallResNet, 3)  # for images of about 32 pixels
network("meta_mobilenetv2", MetaMobileNetV2)
network("meta_mobilenetv2_small", MetaMobileNetV2, inverted_residual_setting=SMALL)

# those between trained sizes: the authors do not say in which mode they tested
FIGURES = """
224=0.300/72.86 208@224+192=0.270/72.42 192=0.221/72.22 176@192+160=0.195/71.63 160=0.154/71.16
144@160+128=0.133/69.80 128=0.099/69.14 112@128+96=0.082/66.59 96=0.056/65.07"""
ABOUT = {"recipe": "https://github.com/d-li14/SAN", "license": "MIT"}
ABOUT |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # images go from 0 to 1


# fmt: off
class MetaResNet18_Weights(AdaptiveWeights):
    V1 = DEFAULT = released("meta_resnet18_san", 23_066_408, "", model="meta_resnet18",
                            file="1JqJSxjD6rMOlxYY44D3QEWH23Lo6XuIF", **ABOUT)


class MetaResNet50_Weights(AdaptiveWeights):
    V1 = DEFAULT = released("meta_resnet50_san", 52_022_312, "", model="meta_resnet50",
                            file="1Cci3_vAP_sXVwdUhhtZ2T07KDYUlW_B-", **ABOUT)


class MetaMobileNetV2_Weights(AdaptiveWeights):
    V1 = DEFAULT = released("meta_mobilenetv2_san", 5_831_080, FIGURES, model="meta_mobilenetv2",
                            file="1rkl_pV0_HBCVhhwxa1FK6Ec6gxOsjvPT", **ABOUT)
# fmt: on


enter(MetaResNet18_Weights, MetaResNet50_Weights, MetaMobileNetV2_Weights)
