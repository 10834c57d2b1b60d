"""DS-Net (Li et al., 2021): networks of many widths, one of which a gate chooses for each image."""

from torchvision.transforms import InterpolationMode

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

FIGURES = """
uniform_13=0.565/74.6 uniform_12=0.519/74.1 uniform_11=0.475/73.9 uniform_10=0.433/73.6 uniform_9=0.393/73.3
uniform_8=0.355/73.0 uniform_7=0.319/72.7 uniform_6=0.286/72.4 uniform_5=0.255/72.0 uniform_4=0.226/71.6
uniform_3=0.200/71.2 uniform_2=0.175/70.8 uniform_1=0.153/70.4 uniform_0=0.133/70.1"""  # GMACs with average pools


class DS_MBNet_Weights(zoo.AdaptiveWeights):
    V1 = DEFAULT = zoo.released(
        "DS_MBNet-70_1",
        7_676_204,
        FIGURES,
        model="slimmable_mbnet_v1_bn_uniform",
        file="https://github.com/changlin31/DS-Net/releases/download/v0.0.1/DS_MBNet-70_1.pth.tar",
        recipe="https://github.com/changlin31/DS-Net",
        interpolation=InterpolationMode.BICUBIC,
    )


zoo.enter(DS_MBNet_Weights)
