"""A file of weights, read: the weights themselves, and what the file says of how they were made and are to be used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from . import registry, zoo
from .subnet import ManyNetworks
from .weights import WeightsError, load_state, model_state, num_classes, read_checkpoint, settings_of, words_of

# settings that say how a network is built
SHAPE = {"stem": str, "patch_size": int, "window_size": int, "sizes": list, "channels": list}
# what a user may leave to the file, with the type that it has there
SETTINGS = {"model": str, "no_switchable_norms": bool, "val_split": float, "val_resize_size": int, "val_crop_size": int}
SETTINGS |= {"interpolation": str, "normalize": str} | SHAPE
# how its training images looked, for calibration
SETTINGS |= {"train_crop_size": int, "hflip_prob": float, "auto_augment": str, "ra_magnitude": int}
SETTINGS |= {"augmix_severity": int, "random_erase": float}


class Saved(NamedTuple):
    source: str
    state: dict[str, Tensor]
    statistics: Mapping[str, Mapping[str, Tensor]]  # of each sub-network's own; empty if there are none
    classes: list[str] | None  # their names, if the file says them
    trained: list[str]  # names of sub-networks
    settings: dict[str, Any]  # those that the file says
    about: str  # in words, what was taken of it


def read_weights(path: Path, name: str | None = None, model: str | None = None, ema: bool = False) -> Saved:
    """What `path` holds; `name` is that of released weights, `model` whose they should be, `ema` asks for averages."""
    content, source = read_checkpoint(path), str(path)
    state = model_state(content, ema=ema, source=source)
    theirs = "state_dict" in content  # timm's layout, whose arguments are other commands'
    settings = settings_of({} if theirs else content, SETTINGS, source) | zoo.settings(name, model)
    settings = {name: value for name, value in settings.items() if value is not None}
    if model not in (None, settings.get("model", model)):
        raise WeightsError(f"{source}: is of --model {settings['model']}, not {model}")
    statistics = content.get("statistics")
    statistics = statistics.get("model_ema" if ema else "model") if isinstance(statistics, Mapping) else None
    about = ["averaged" if ema else "not averaged (--model-ema takes their average)"] if "model_ema" in content else []
    about += [f"epoch {content['epoch']}"] if "epoch" in content else []
    trained = words_of(content, "trained", source) or []
    about += [f"{' and '.join(trained)} trained"] if trained else []
    classes = words_of(content, "classes", source)
    return Saved(source, state, statistics or {}, classes, trained, settings, ", ".join(about))


def network(saved: Saved, name: str | None = None, image_size: int | None = None, **shape: Any) -> ManyNetworks:
    """The network of these weights in evaluation mode, with the statistics of sub-networks that the file has.

    What is not said here (None), the file says: its name, and its `shape` by the settings of SHAPE.
    """
    name = name or saved.settings.get("model")
    if name is None:
        raise WeightsError(f"{saved.source}: does not say of which model it is: name that")
    classes = num_classes(saved.state, saved.source)
    if saved.classes is not None and len(saved.classes) != classes:
        problem = f"names {len(saved.classes)} classes, but its weights are for {classes}: it is damaged"
        raise WeightsError(f"{saved.source}: {problem}")
    settings = {key: shape.get(key) or saved.settings.get(key) for key in SHAPE}
    settings["switchable_norms"] = False if saved.settings.get("no_switchable_norms") else None
    settings["image_size"] = image_size or saved.settings.get("val_crop_size")
    try:
        model = registry.build(name, num_classes=classes, **settings)
    except (ValueError, AssertionError) as error:
        raise WeightsError(f"{saved.source}: {name}: {error}") from None
    load_state(model, saved.state, saved.source)
    model.load_statistics(saved.statistics, saved.source)
    return model.eval()
