"""Weights by name: those that the authors released, and torchvision's, from which a network can start.

`--weights resnet50_adn` and `models.resnet50(weights="V1")` name the same file. It is fetched once, into torch.hub's
cache. Accuracies and GMACs per sub-network are those that the authors publish (ILSVRC-2012, val).
"""

import re
import urllib.parse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights, Weights, WeightsEnum, get_model_weights
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode

from .download import Remote, defect, download
from .weights import WeightsError, model_state, read_checkpoint

IMAGENET_CLASSES: list[str] = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
# `confirm=t` answers Google's question about large files
DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
META = {  # of every entry; bytes and sha256 are checked where they are known
    "categories": IMAGENET_CLASSES,
    "min_size": (1, 1),
    "size": None,
    "sha256": None,
    "_docs": "The largest sub-network's figures; those of the other published ones are under `subnets`.",
}


class AdaptiveWeights(WeightsEnum):
    """Released weights of an adaptive network: torchvision's enum, with a download that survives bad connections."""

    def get_state_dict(self, *args: Any, **kwargs: Any) -> Mapping[str, Tensor]:
        """The weights, fetched if they are not there yet. Size and, where known, hash are always checked."""
        path = fetched(self)
        return model_state(read_checkpoint(path), source=str(path))


def released(
    name: str,
    num_params: int,
    figures: str,
    *,
    model: str,
    file: str,
    recipe: str,
    license: str = "none stated by the authors",
    **images: Any,
) -> Weights:
    """An entry of the zoo: its own name and its model's, and each published sub-network's GMACs and top-1.

    `figures` are words like TTFF=3.46/76.5, the largest sub-network's first. `file` is an address, or an id on Google
    Drive. `images`: in what an evaluation's images differ from those of `ImageClassification(crop_size=224)`.
    """
    subnets: dict[str, dict[str, float]] = {}
    for word in figures.split():
        subnet, _, values = word.partition("=")
        subnets[subnet] = dict(zip(("gmacs", "acc@1"), map(float, values.split("/")), strict=True))
    largest = next(iter(subnets.values()), {})
    url = page = file
    if not file.startswith("https:"):
        url = DRIVE.format(file)
        page = f"https://drive.google.com/file/d/{file}/view"
    known = {
        "name": name,
        "model": model,
        "page": page,
        "num_params": num_params,
        "recipe": recipe,
        "license": license,
        "subnets": subnets,
        "_metrics": {"ImageNet-1K": {"acc@1": largest["acc@1"]}} if subnets else {},
        "_ops": largest.get("gmacs"),
    }
    return Weights(url, partial(ImageClassification, crop_size=224, **images), META | known)


def _adn(name: str, num_params: int, figures: str, file: str, **images: Any) -> Weights:
    """One of the authors of adaptive depth: its model's name with `_adn`."""
    recipe, model = "https://github.com/wchkang/depth#training-and-evaluation-on-imagenet", name.partition("_adn")[0]
    return released(name, num_params, figures, model=model, file=file, recipe=recipe, **images)


# fmt: off
class ResNet50_ADN_Weights(AdaptiveWeights):
    V1 = _adn("resnet50_adn", 25_583_144, "FFFF=4.11/77.6 TFFF=3.90/77.1 TTFF=3.46/76.5 TTTT=2.58/76.1",
              "1thbJDkDYhhM7ZI3LY8d9dZ4TWSbYMT0b")
    V2 = _adn("resnet50_adn_v2", 25_583_144,
              "FFFF=4.11/80.5 TFFF=3.90/80.4 TTFF=3.46/79.9 TTTF=2.80/78.7 TTTT=2.58/78.4",
              "15g7GNB9VkTARW-yqyiHOyglfeOaGf15p", resize_size=232)
    DEFAULT = V2


class MobileNet_V2_ADN_Weights(AdaptiveWeights):
    V1 = DEFAULT = _adn("mobilenet_v2_adn", 3_527_544, "FFFFF=0.32/72.5 TTTTT=0.22/70.6",
                        "1bft5SECYXOFjEhPSkAp2Z9d1U-7w2Mnz")


class ViT_B_16_ADN_Weights(AdaptiveWeights):
    V1 = DEFAULT = _adn("vit_b_16_adn", 86_592_232,
                        "FFFF=17.58/81.4 FFFT=16.20/81.2 TTFF=14.67/80.9 TTFT=13.21/80.7 TTTT=11.76/80.6",
                        "1DlHNgjDCKJOWWFSuQIjClA5Ewbc6Jy3u")


class Swin_T_ADN_Weights(AdaptiveWeights):
    V1 = DEFAULT = _adn("swin_t_adn", 28_302_562, "FFFF=4.49/81.6 TFFF=4.11/80.8 TTFF=3.75/80.0 TTTT=2.34/78.0",
                        "10twk67rVBAoKFKZSkgsXEzx1RABX73kF", interpolation=InterpolationMode.BICUBIC)
# fmt: on


FAMILIES: list[type[AdaptiveWeights]] = []
RELEASED: dict[str, AdaptiveWeights] = {}


def enter(*families: type[AdaptiveWeights]) -> None:
    """Make released weights known by their names."""
    FAMILIES.extend(families)
    RELEASED.update({weights.meta["name"]: weights for family in families for weights in family})


enter(ResNet50_ADN_Weights, MobileNet_V2_ADN_Weights, ViT_B_16_ADN_Weights, Swin_T_ADN_Weights)


def named(name: str | None, model: str | None = None) -> WeightsEnum | None:
    """The weights of that name; None where there are none, or where it is a file.

    `resnet50_adn`, `ResNet50_ADN_Weights.V1`, of a `model` also torchvision's `ResNet50_Weights.IMAGENET1K_V2` and the
    last word alone: `V1`, `IMAGENET1K_V2`, `DEFAULT`. Ours come before torchvision's.
    """
    if not name or Path(name).is_file():
        return None
    if name in RELEASED:
        return RELEASED[name]
    kind, _, member = name.rpartition(".")
    kinds = [enum for enum in (*FAMILIES, *_plain(model)) if enum.__name__ == kind] if kind else _enums(model)
    return next((enum[member] for enum in kinds if member in enum.__members__), None)


def names(model: str) -> list[str]:
    """Those under which weights of a model are known, or an ordinary network's to start it from."""
    return [entry.meta["name"] if enum in FAMILIES else repr(entry) for enum in _enums(model) for entry in enum]


def _enums(model: str | None) -> list[type[WeightsEnum]]:
    return [enum for enum in FAMILIES if enum.DEFAULT.meta["model"] == model] + _plain(model)


def _plain(model: str | None) -> list[type[WeightsEnum]]:
    """torchvision's weights of the ordinary network, if it has that."""
    try:
        return [get_model_weights(model)] if model else []
    except ValueError:
        return []


def weights_file(weights: str, model: str | None = None, url: str | None = None, folder: str | None = None) -> Path:
    """The file that `--weights` means: a file's path, or a released network by name. The rest is as in `fetched`."""
    path, entry = Path(weights), named(weights, model)
    if path.is_file():
        return path
    if isinstance(entry, AdaptiveWeights):
        return fetched(entry, model, url, folder)
    what = f"no such file, nor a released network ({', '.join(RELEASED)})"
    if entry is not None:
        what = "the weights of an ordinary network, which can only start a training: use --init-from"
    raise WeightsError(f"--weights {weights}: {'not a file' if path.exists() else what}")


def fetched(
    weights: WeightsEnum,
    model: str | None = None,
    url: str | None = None,
    folder: str | None = None,
    progress: bool = True,
) -> Path:
    """The file of weights that have a name, with `model` if they are of that one.

    It is taken from `folder` if that is given, else from torch.hub's cache, fetched into it from `url` (the file or its
    folder; by default where it was published).
    """
    meta = weights.meta
    if model is not None and meta.get("model", model) != model:
        raise WeightsError(f"{weights!r} are weights of {meta['model']}, not of {model}: use --model {meta['model']}")
    published = Path(urllib.parse.urlsplit(weights.url).path).name
    name = f"{meta['name']}.pth" if isinstance(weights, AdaptiveWeights) else published
    page, beginning = meta.get("page", weights.url), re.search(r"-([a-f0-9]{8,})\.", name)
    size, sha256 = meta.get("size"), meta.get("sha256") or (beginning and beginning[1])
    if folder is not None:
        path = Path(folder, name)
        if not path.is_file():
            raise WeightsError(f"{path} is not there: open {page} and save the file as {path}")
    else:
        target = Path(torch.hub.get_dir(), "checkpoints", name)
        address = _of_mirror(url, name) if url else weights.url
        path = download(Remote(address, target, page, size, sha256, progress))
    if what := defect(path, size, sha256):
        raise WeightsError(f"{path} {what}")
    return path


def _of_mirror(url: str, name: str) -> str:
    """The address of a file of that name, where the mirror's is a folder."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise WeightsError(f"{url}: no http or https address ({error})") from None
    return url if parts.query or Path(parts.path).suffix else f"{url.rstrip('/')}/{name}"


def class_names(count: int) -> list[str]:
    """ImageNet's names for its number of classes, else numbers."""
    return IMAGENET_CLASSES if count == len(IMAGENET_CLASSES) else [f"class {number}" for number in range(count)]


def published(model: str) -> dict[str, dict[str, dict[str, float]]]:
    """What the authors publish of a model: release → sub-network → its `gmacs` and `acc@1`; empty for other models."""
    entries = {name: weights.meta for name, weights in RELEASED.items()}
    return {name: meta["subnets"] for name, meta in entries.items() if meta["model"] == model and meta["subnets"]}


def settings(weights: str | None, model: str | None = None) -> dict[str, Any]:
    """The command's settings for released weights: network, and images as in their evaluation; empty for others."""
    entry = named(weights, model)
    if not isinstance(entry, AdaptiveWeights):
        return {}
    preset = entry.transforms()
    sizes = {"val_resize_size": preset.resize_size[0], "val_crop_size": preset.crop_size[0]}
    colours = {} if any(preset.mean) else {"normalize": "none"}
    return sizes | {"interpolation": preset.interpolation.value, "model": entry.meta["model"]} | colours
