"""Weights by name: those that the authors released, and torchvision's, from which a network can start.

`--weights resnet50_adn` and `models.resnet50(weights=ResNet50_ADN_Weights.V1)` name the same file. It is fetched once,
into torch.hub's cache. Accuracies and GMACs per sub-network are those that the authors publish (ILSVRC-2012, val).
"""

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

from .adaptive import AdaptiveDepth
from .download import Remote, defect, download, one_at_a_time
from .weights import WeightsError, load_state, model_state, read_checkpoint

IMAGENET_CLASSES: list[str] = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


class AdaptiveWeights(WeightsEnum):
    """Released weights of an adaptive network: torchvision's enum, with a download that survives bad connections."""

    def get_state_dict(self, *args: Any, **kwargs: Any) -> Mapping[str, Tensor]:
        """The weights, fetched if they are not there yet. Size and, where known, hash are always checked."""
        path = weights_file(self.meta["name"])
        return model_state(read_checkpoint(path), source=str(path))


def _released(
    name: str, drive_id: str, num_params: int, resize_size: int = 256, interpolation: str = "bilinear", **subnets: Any
) -> Weights:
    """An entry of the zoo: its model's name with `_adn`, and each published sub-network with its GMACs and top-1."""
    (super_gmacs, super_top1), *_ = subnets.values()
    transforms = {"crop_size": 224, "resize_size": resize_size, "interpolation": InterpolationMode(interpolation)}
    return Weights(
        # `confirm=t` answers Drive's question about large files
        url=f"https://drive.usercontent.google.com/download?id={drive_id}&export=download&confirm=t",
        transforms=partial(ImageClassification, **transforms),
        meta={
            "name": name,
            "model": name.partition("_adn")[0],
            "page": f"https://drive.google.com/file/d/{drive_id}/view",
            "size": None,  # bytes and sha256 are checked where they are known
            "sha256": None,
            "categories": IMAGENET_CLASSES,
            "min_size": (1, 1),
            "num_params": num_params,
            "recipe": "https://github.com/wchkang/depth#training-and-evaluation-on-imagenet",
            "license": "none stated by the authors",
            "subnets": {subnet: {"gmacs": gmacs, "acc@1": top1} for subnet, (gmacs, top1) in subnets.items()},
            "_metrics": {"ImageNet-1K": {"acc@1": super_top1}},
            "_ops": super_gmacs,
            "_docs": "Super-net's figures; those of the other published sub-networks are under `subnets`.",
        },
    )


# fmt: off
class ResNet50_ADN_Weights(AdaptiveWeights):
    V1 = _released("resnet50_adn", "1thbJDkDYhhM7ZI3LY8d9dZ4TWSbYMT0b", 25_583_144,
                   FFFF=(4.11, 77.6), TFFF=(3.90, 77.1), TTFF=(3.46, 76.5), TTTT=(2.58, 76.1))
    V2 = _released("resnet50_adn_v2", "15g7GNB9VkTARW-yqyiHOyglfeOaGf15p", 25_583_144, resize_size=232,
                   FFFF=(4.11, 80.5), TFFF=(3.90, 80.4), TTFF=(3.46, 79.9), TTTF=(2.80, 78.7), TTTT=(2.58, 78.4))
    DEFAULT = V2


class MobileNet_V2_ADN_Weights(AdaptiveWeights):
    V1 = _released("mobilenet_v2_adn", "1bft5SECYXOFjEhPSkAp2Z9d1U-7w2Mnz", 3_527_544,
                   FFFFF=(0.32, 72.5), TTTTT=(0.22, 70.6))
    DEFAULT = V1


class ViT_B_16_ADN_Weights(AdaptiveWeights):
    V1 = _released("vit_b_16_adn", "1DlHNgjDCKJOWWFSuQIjClA5Ewbc6Jy3u", 86_592_232,
                   FFFF=(17.58, 81.4), FFFT=(16.20, 81.2), TTFF=(14.67, 80.9), TTFT=(13.21, 80.7), TTTT=(11.76, 80.6))
    DEFAULT = V1


class Swin_T_ADN_Weights(AdaptiveWeights):
    V1 = _released("swin_t_adn", "10twk67rVBAoKFKZSkgsXEzx1RABX73kF", 28_302_562, interpolation="bicubic",
                   FFFF=(4.49, 81.6), TFFF=(4.11, 80.8), TTFF=(3.75, 80.0), TTTT=(2.34, 78.0))
    DEFAULT = V1
# fmt: on


FAMILIES = (ResNet50_ADN_Weights, MobileNet_V2_ADN_Weights, ViT_B_16_ADN_Weights, Swin_T_ADN_Weights)
RELEASED: dict[str, AdaptiveWeights] = {weights.meta["name"]: weights for family in FAMILIES for weights in family}


def weights_file(weights: str, model: str | None = None, url: str | None = None, folder: str | None = None) -> Path:
    """The file that `--weights` means: a file's path, or a released network by its name (or its enum's).

    A released one is taken from `folder` if that is given, else from torch.hub's cache, fetched into it from `url` (the
    file or its folder; by default where the authors put it). With `model` it must be weights of that model.
    """
    path = Path(weights)
    if path.is_file():
        return path
    released = next((entry for name, entry in RELEASED.items() if weights in (name, repr(entry))), None)
    if released is None:
        known = f"no such file, nor a released network ({', '.join(RELEASED)})"
        raise WeightsError(f"--weights {weights}: {'not a file' if path.exists() else known}")
    meta = released.meta
    if model not in (None, meta["model"]):
        raise WeightsError(f"{weights} are weights of {meta['model']}, not of {model}: use --model {meta['model']}")
    name = f"{meta['name']}.pth"
    if folder is not None:
        path = Path(folder, name)
        if not path.is_file():
            raise WeightsError(f"{path} is not there: open {meta['page']} and save the file as {path}")
    else:
        address = url or released.url
        parts = urllib.parse.urlsplit(address)
        if not parts.query and not Path(parts.path).suffix:  # a mirror's folder
            address = f"{address.rstrip('/')}/{name}"
        path = download(Remote(address, _cached(name), meta["page"], meta["size"], meta["sha256"]))
    if what := defect(path, meta["size"], meta["sha256"]):
        raise WeightsError(f"{path} {what}")
    return path


def _cached(name: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", name)


def load_plain(
    model: AdaptiveDepth, weights: Mapping[str, Tensor] | WeightsEnum, *, new_head: bool = False, progress: bool = True
) -> list[str]:
    """Start from an ordinary network: its weights become the super-net's, each skip norm a copy of its twin.

    Weights that already hold skip norms are loaded as they are. With `new_head`, a classifier for another number of
    classes stays as the model has it. Returns the names of what was left so.
    """
    source = "state dict"
    if isinstance(weights, WeightsEnum):
        source, weights = repr(weights), _fetched(weights, progress)
    state = model_state(weights, source=source)
    adaptive = any("_skip." in name for name in state)
    target = model if adaptive else model.view(model.super_net)
    own = target.state_dict()
    kept = [name for name in state if new_head and name in own and state[name].shape != own[name].shape]
    kept = [name for name in kept if own[name].shape[1:] == state[name].shape[1:]]
    load_state(target, state | {name: own[name].clone() for name in kept}, source)
    if not adaptive:
        for module in model.modules():
            for name, twin in module.named_children():
                if name.endswith("_skip"):
                    twin.load_state_dict(getattr(module, name.removesuffix("_skip")).state_dict())
    return kept


def _fetched(weights: WeightsEnum, progress: bool) -> Mapping[str, Tensor]:
    """torchvision fetches its weights by its own means, here in one process of a machine; then all read the file."""
    if isinstance(weights, AdaptiveWeights):
        return weights.get_state_dict()
    path = _cached(Path(urllib.parse.urlsplit(weights.url).path).name)
    try:
        with one_at_a_time(path):
            return weights.get_state_dict(progress=progress, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{weights!r}: {reason}; open {weights.url} and save the file as {path}") from error


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
    sizes = {"val_resize_size": preset.resize_size[0], "val_crop_size": preset.crop_size[0]}
    return sizes | {"interpolation": preset.interpolation.value}
