"""torch.hub's door: `torch.hub.load("OWNER/REPOSITORY", "resnet50_adn")`.

The names of released networks load them (`pretrained=False`: the network alone); the names of all other networks of
`models` build them. Every one is called as `model(images, skip=(True, True, False, False))`.
"""

import functools
from collections.abc import Callable
from typing import Any

import models
from models.zoo import RELEASED, AdaptiveWeights

dependencies = ["torch", "torchvision", "numpy", "tqdm"]


def _entry(weights: AdaptiveWeights) -> Callable[..., models.AdaptiveDepth]:
    build = models.MODELS[weights.meta["model"]]

    @functools.wraps(build)
    def load(pretrained: bool = True, progress: bool = True, **kwargs: Any) -> models.AdaptiveDepth:
        return build(weights=weights if pretrained else None, progress=progress, **kwargs)

    return load


# torch.hub finds its entry points among the attributes of this module
globals().update(models.MODELS)
globals().update({name: _entry(weights) for name, weights in RELEASED.items()})
