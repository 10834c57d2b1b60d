"""DS-Net (Li et al., 2021): networks of many widths, one of which a gate chooses for each image."""

from .. import zoo
from ..registry import network
from .routing import DynamicSlimmable

network("slimmable_mbnet_v1_bn_uniform", DynamicSlimmable)

# Of the same make, a twentieth of the cost, for images of 28 or 32 pixels: shrunk three times instead of five.
network(
    "slimmable_mbnet_v1_small",
    DynamicSlimmable,
    widths=((8, 16), (12, 24), (16, 32), (24, 64), range(48, 257, 16), range(96, 357, 20)),
    blocks=(1, 1, 1, 3, 1),
    stem="small",
)

MADDS = (133, 153, 175, 200, 226, 255, 286, 319, 355, 393, 433, 475, 519, 565)  # in 1e6, with average pools
TOP1 = (70.1, 70.4, 70.8, 71.2, 71.6, 72.0, 72.4, 72.7, 73.0, 73.3, 73.6, 73.9, 74.1, 74.6)


class DS_MBNet_Weights(zoo.AdaptiveWeights):
    V1 = zoo.released(
        "DS_MBNet-70_1",
        7_676_204,
        {f"uniform_{number}": (MADDS[number] / 1000, TOP1[number]) for number in reversed(range(14))},
        model="slimmable_mbnet_v1_bn_uniform",
        url="https://github.com/changlin31/DS-Net/releases/download/v0.0.1/DS_MBNet-70_1.pth.tar",
        recipe="https://github.com/changlin31/DS-Net",
        interpolation="bicubic",
    )
    DEFAULT = V1


zoo.enter(DS_MBNet_Weights)
