"""The networks by name, and the settings a command hands to any of them."""

import difflib
from collections.abc import Callable
from typing import Any

from torchvision.models import WeightsEnum

from . import zoo
from .adaptive import AdaptiveDepth
from .start import load_plain
from .weights import WeightsError

MODELS: dict[str, Callable[..., AdaptiveDepth]] = {}


def network(name: str, family: type[AdaptiveDepth], *arguments: Any, **settings: Any) -> Callable[..., AdaptiveDepth]:
    """Enter a network under its name: a family with its arguments, and settings that a caller may replace.

    As in torchvision, `weights` is a weights enum, or its name: one of ours, or one of torchvision's plain network to
    start from.
    """

    def make(*, weights: WeightsEnum | str | None = None, progress: bool = True, **kwargs: Any) -> AdaptiveDepth:
        if weights is None:
            return family(*arguments, **{**settings, **kwargs})
        entry = zoo.named(weights, name) if isinstance(weights, str) else weights
        if entry is None:
            raise WeightsError(f"{name} has no weights {weights!r}; it has {', '.join(zoo.names(name)) or 'none'}")
        theirs = {"num_classes": len(entry.meta["categories"])}
        if "image_size" in family.settings:
            theirs["image_size"] = entry.transforms().crop_size[0]
        model = family(*arguments, **{**settings, **theirs, **kwargs})
        load_plain(model, entry, progress=progress)
        return model

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"Adaptive-depth {name}. `weights`: an enum of ours or of torchvision's {name}, or its name."
    make.settings = family.settings
    MODELS[name] = make
    return make


def build(
    name: str,
    *,
    stem: str | None = None,
    image_size: int | None = None,
    patch_size: int | None = None,
    window_size: int | None = None,
    **kwargs: Any,
) -> AdaptiveDepth:
    """The network called `name`. A setting that is None keeps the network's own; one that it does not know is an error.

    `image_size` binds only networks of a fixed image size; the others take any.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(MODELS)}"
        raise ValueError(f"unknown model {name!r}; {hint}")
    make = MODELS[name]
    settings = {"stem": stem, "image_size": image_size, "patch_size": patch_size, "window_size": window_size}
    given = {setting: value for setting, value in settings.items() if value is not None}
    for setting in given.keys() - set(make.settings) - {"image_size"}:
        raise ValueError(f"{name} has no setting {setting}; it takes {', '.join(make.settings) or 'none'}")
    return make(**{setting: given[setting] for setting in given if setting in make.settings}, **kwargs)
