"""DS-Net (Li et al., 2021): networks of many widths, one of which a gate chooses for each image."""

from ..registry import network
from .routing import DynamicSlimmable

network("slimmable_mbnet_v1_bn_uniform", DynamicSlimmable)

# Of the same make, a tenth of the cost, for images of 28 or 32 pixels: shrunk three times instead of five.
network(
    "slimmable_mbnet_v1_small",
    DynamicSlimmable,
    widths=((8, 12), (16, 24), (24, 48), (32, 80), range(48, 153, 8), range(96, 305, 16)),
    blocks=(1, 1, 2, 3, 1),
    stem="small",
)
