"""Networks whose width is chosen at run time: slimmable and universally slimmable networks, and AutoSlim's.

model = models.us_mobilenet_v2(num_classes=1000)
logits = model(images, 0.35)                # a width; None is the largest
"""

from . import mobilenet, resnet, shufflenet, zoo

__all__ = ["mobilenet", "resnet", "shufflenet", "zoo"]
