"""Networks whose depth is chosen at run time.

model = models.resnet50(num_classes=1000)
logits = model(images, skip=(True, True, False, False))     # one of 2^4 sub-networks; None is the super-net

A file of this folder that enters networks into the registry is a family: importing `models` finds it.
"""

import importlib
import pkgutil

from . import start, teacher, zoo
from .adaptive import AdaptiveDepth
from .calibration import WithStatistics
from .registry import MODELS, build
from .saved import SHAPE, Saved, network, read_weights
from .start import load_plain
from .subnet import Cost, ManyNetworks
from .weights import (
    WeightsError,
    load_state,
    model_state,
    num_classes,
    read_checkpoint,
    settings_of,
    words_of,
)

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
globals().update(MODELS)
calibrate, load_statistics = WithStatistics.calibrate, WithStatistics.load_statistics

__all__ = [
    "MODELS",
    "SHAPE",
    "AdaptiveDepth",
    "Cost",
    "ManyNetworks",
    "Saved",
    "WeightsError",
    "build",
    "calibrate",
    "load_plain",
    "load_state",
    "load_statistics",
    "model_state",
    "network",
    "num_classes",
    "read_checkpoint",
    "read_weights",
    "settings_of",
    "start",
    "teacher",
    "words_of",
    "zoo",
    *MODELS,
]
