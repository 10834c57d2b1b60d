"""The networks by name, and the settings a command hands to any of them."""

import difflib
from collections.abc import Callable
from typing import Any

from torchvision.models import WeightsEnum

from . import zoo
from .start import load_plain
from .subnet import ManyNetworks
from .weights import WeightsError

MODELS: dict[str, Callable[..., ManyNetworks]] = {}
SOURCES: dict[str, Callable[[str], Callable[..., ManyNetworks]]] = {}  # of networks called `source:name`


def network(name: str, family: type[ManyNetworks], *arguments: Any, **settings: Any) -> Callable[..., ManyNetworks]:
    """Enter a network under its name: a family with its arguments, and settings that a caller may replace.

    As in torchvision, `weights` is a weights enum, or its name: one of ours, or one of torchvision's plain network to
    start from.
    """

    def make(*, weights: WeightsEnum | str | None = None, progress: bool = True, **kwargs: Any) -> ManyNetworks:
        if weights is None:
            return family(*arguments, **{**settings, **kwargs})
        entry = zoo.named(weights, name) if isinstance(weights, str) else weights
        if entry is None:
            raise WeightsError(f"{name} has no weights {weights!r}; it has {', '.join(zoo.names(name)) or 'none'}")
        theirs = {"num_classes": len(entry.meta["categories"])}
        if "image_size" in make.settings:
            theirs["image_size"] = entry.transforms().crop_size[0]
        model = family(*arguments, **{**settings, **theirs, **kwargs})
        load_plain(model, entry, progress=progress)
        return model

    make.__name__ = make.__qualname__ = name
    weights = f"`weights`: an enum of ours or of torchvision's {name}, or its name."
    make.__doc__ = f"{name}, many networks in one set of weights. {weights}"
    make.settings = tuple(setting for kind in family.__mro__ for setting in vars(kind).get("settings", ()))
    make.sizes = getattr(family, "default_sizes", None)  # of images, on which a network of several resolutions trains
    MODELS[name] = make
    return make


def build(name: str, **settings: Any) -> ManyNetworks:
    """The network called `name`. A setting that is None keeps the network's own; one of other networks is an error.

    `image_size` binds only networks of a fixed image size; the others take any.
    """
    source, _, theirs = name.partition(":")
    if name not in MODELS and not (theirs and source in SOURCES):
        near = difflib.get_close_matches(name, MODELS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(MODELS)}"
        raise ValueError(f"unknown model {name!r}; {hint}")
    make = SOURCES[source](theirs) if theirs else MODELS[name]
    given = {setting: value for setting, value in settings.items() if value is not None}
    of_others = {setting for other in MODELS.values() for setting in other.settings} - {*make.settings, "image_size"}
    for setting in given.keys() & of_others:
        raise ValueError(f"{name} has no setting {setting}; it takes {', '.join(make.settings) or 'none'}")
    if "image_size" not in make.settings:
        given.pop("image_size", None)
    return make(**given)
