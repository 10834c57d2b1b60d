"""The weights that the authors released, in torchvision's conventions, and where on this machine their files are.

`--weights resnet50_adn` and `models.resnet50(weights=ResNet50_ADN_Weights.V1)` name the same file. It is fetched once,
into torch.hub's cache. Accuracies and GMACs per sub-network are those that the authors publish (ILSVRC-2012, val).
"""

import os
import urllib.parse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights, Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode

from .download import Remote, check_kind, download
from .weights import WeightsError, model_state, read_checkpoint

RECIPES = "https://github.com/wchkang/depth#training-and-evaluation-on-imagenet"
IMAGENET_CLASSES: list[str] = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


class AdaptiveWeights(WeightsEnum):
    """Released weights of an adaptive network: torchvision's enum, with a download that survives bad connections."""

    def get_state_dict(self, progress: bool = True, check_hash: bool = True) -> Mapping[str, Tensor]:
        """The weights, fetched if they are not there yet. Size and, where known, hash are always checked."""
        path = weights_file(self.meta["name"])
        return model_state(read_checkpoint(path), source=str(path))


def _released(
    name: str,
    model: str,
    drive_id: str,
    subnets: dict[str, tuple[float, float]],
    *,
    num_params: int,
    **transforms: Any,
) -> Weights:
    """An entry of the zoo; `subnets`: name → (GMACs, top-1). `confirm=t` answers Drive's question about large files."""
    gmacs, top1 = next(iter(subnets.values()))
    return Weights(
        url=f"https://drive.usercontent.google.com/download?id={drive_id}&export=download&confirm=t",
        transforms=partial(ImageClassification, crop_size=224, **transforms),
        meta={
            "name": name,
            "model": model,
            "page": f"https://drive.google.com/file/d/{drive_id}/view",
            "size": None,  # bytes and sha256 are checked where they are known
            "sha256": None,
            "categories": IMAGENET_CLASSES,
            "min_size": (1, 1),
            "num_params": num_params,
            "recipe": RECIPES,
            "license": "none stated by the authors",
            "subnets": {subnet: {"gmacs": cost, "acc@1": accuracy} for subnet, (cost, accuracy) in subnets.items()},
            "_metrics": {"ImageNet-1K": {"acc@1": top1}},
            "_ops": gmacs,
            "_docs": "Super-net's figures; those of the other published sub-networks are under `subnets`.",
        },
    )


class ResNet50_ADN_Weights(AdaptiveWeights):
    V1 = _released(
        "resnet50_adn",
        "resnet50",
        "1thbJDkDYhhM7ZI3LY8d9dZ4TWSbYMT0b",
        {"FFFF": (4.11, 77.6), "TFFF": (3.90, 77.1), "TTFF": (3.46, 76.5), "TTTT": (2.58, 76.1)},
        num_params=25_583_144,
    )
    V2 = _released(
        "resnet50_adn_v2",
        "resnet50",
        "15g7GNB9VkTARW-yqyiHOyglfeOaGf15p",
        {"FFFF": (4.11, 80.5), "TFFF": (3.90, 80.4), "TTFF": (3.46, 79.9), "TTTF": (2.80, 78.7), "TTTT": (2.58, 78.4)},
        num_params=25_583_144,
        resize_size=232,
    )
    DEFAULT = V2


class MobileNet_V2_ADN_Weights(AdaptiveWeights):
    V1 = _released(
        "mobilenet_v2_adn",
        "mobilenet_v2",
        "1bft5SECYXOFjEhPSkAp2Z9d1U-7w2Mnz",
        {"FFFFF": (0.32, 72.5), "TTTTT": (0.22, 70.6)},
        num_params=3_527_544,
    )
    DEFAULT = V1


class ViT_B_16_ADN_Weights(AdaptiveWeights):
    V1 = _released(
        "vit_b_16_adn",
        "vit_b_16",
        "1DlHNgjDCKJOWWFSuQIjClA5Ewbc6Jy3u",
        {
            "FFFF": (17.58, 81.4),
            "FFFT": (16.20, 81.2),
            "TTFF": (14.67, 80.9),
            "TTFT": (13.21, 80.7),
            "TTTT": (11.76, 80.6),
        },
        num_params=86_592_232,
    )
    DEFAULT = V1


class Swin_T_ADN_Weights(AdaptiveWeights):
    V1 = _released(
        "swin_t_adn",
        "swin_t",
        "10twk67rVBAoKFKZSkgsXEzx1RABX73kF",
        {"FFFF": (4.49, 81.6), "TFFF": (4.11, 80.8), "TTFF": (3.75, 80.0), "TTTT": (2.34, 78.0)},
        num_params=28_302_562,
        interpolation=InterpolationMode.BICUBIC,
    )
    DEFAULT = V1


FAMILIES = (ResNet50_ADN_Weights, MobileNet_V2_ADN_Weights, ViT_B_16_ADN_Weights, Swin_T_ADN_Weights)
RELEASED: dict[str, AdaptiveWeights] = {weights.meta["name"]: weights for family in FAMILIES for weights in family}


def weights_file(weights: str, model: str | None = None, url: str | None = None, folder: str | None = None) -> Path:
    """The file that `--weights` means: a file's path, or a released network by its name (or its enum's).

    A released one is taken from `folder` if that is given, else from torch.hub's cache, fetched into it from `url` (the
    file or its folder; by default where the authors put it). With `model` it must be weights of that model.
    """
    released = next((w for name, w in RELEASED.items() if weights in (name, repr(w))), None)
    if released is None or Path(weights).is_file():
        return _own_file(weights)
    meta = released.meta
    if model not in (None, meta["model"]):
        raise WeightsError(f"{weights} are weights of {meta['model']}, not of {model}: use --model {meta['model']}")
    name = f"{meta['name']}.pth"
    if folder is not None:
        path = Path(folder, name)
        if not path.is_file():
            raise WeightsError(f"{path} is not there: open {meta['page']} and save the file as {path}")
    else:
        target = Path(torch.hub.get_dir(), "checkpoints", name)
        address = released.url if url is None else _address(url, name)
        path = download(Remote(address, target, meta["page"], meta["size"], meta["sha256"]))
    check_kind(path)
    return path


def _own_file(weights: str) -> Path:
    path = Path(weights)
    if not path.exists():
        raise WeightsError(f"--weights {weights}: no such file, nor a released network ({', '.join(RELEASED)})")
    if not path.is_file():
        raise WeightsError(f"--weights {weights}: not a file")
    return path


def _address(url: str, name: str) -> str:
    """A mirror's address of the file: `url` itself, or the file in it where it is a folder."""
    parts = urllib.parse.urlsplit(url)
    is_file = parts.query or os.path.splitext(parts.path)[1]
    return url if is_file else f"{url.rstrip('/')}/{name}"


def class_names(count: int) -> list[str]:
    """ImageNet's names for its number of classes, else numbers."""
    return IMAGENET_CLASSES if count == len(IMAGENET_CLASSES) else [f"class {number}" for number in range(count)]


def published(model: str) -> dict[str, dict[str, dict[str, float]]]:
    """What the authors publish of a model: release → sub-network → its `gmacs` and `acc@1`; empty for other models."""
    return {name: weights.meta["subnets"] for name, weights in RELEASED.items() if weights.meta["model"] == model}


def preprocessing(weights: str) -> dict[str, Any]:
    """The command's flags for the images that released weights were evaluated on; empty for other weights."""
    if weights not in RELEASED:
        return {}
    preset = RELEASED[weights].transforms()
    return {
        "val_resize_size": preset.resize_size[0],
        "val_crop_size": preset.crop_size[0],
        "interpolation": preset.interpolation.value,
    }
