"""The networks by name, and the options a command hands to any of them."""

import difflib
import functools
from collections.abc import Callable
from typing import Any

from torchvision.models import WeightsEnum

from .adaptive import AdaptiveDepth
from .weights import load_plain

MODELS: dict[str, Callable[..., AdaptiveDepth]] = {}


def network(*options: str) -> Callable[[Callable[..., AdaptiveDepth]], Callable[..., AdaptiveDepth]]:
    """Enter a network under its function's name, with those of the optional settings below that it takes.

    As in torchvision, `weights` is a weights enum: one of ours, or one of torchvision's plain network to start from.
    """

    def enter(function: Callable[..., AdaptiveDepth]) -> Callable[..., AdaptiveDepth]:
        @functools.wraps(function)
        def make(*, weights: WeightsEnum | None = None, progress: bool = True, **kwargs: Any) -> AdaptiveDepth:
            if weights is None:
                return function(**kwargs)
            model = function(**{"num_classes": len(weights.meta["categories"]), **kwargs})
            load_plain(model, weights, progress=progress)
            return model

        make.options = options
        MODELS[function.__name__] = make
        return make

    return enter


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
    function = MODELS[name]
    settings = {"stem": stem, "image_size": image_size, "patch_size": patch_size, "window_size": window_size}
    given = {option: value for option, value in settings.items() if value is not None}
    for option in given.keys() - set(function.options) - {"image_size"}:
        raise ValueError(f"{name} has no setting {option}; it takes {', '.join(function.options) or 'none'}")
    return function(**{option: given[option] for option in given if option in function.options}, **kwargs)
