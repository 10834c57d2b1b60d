"""From a weights file to a network with facts about it, and from these to a file that is run before it has its name."""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import models
from deploy.switch import Wanted
from models import SHAPE
from presets import COLOURS
from utils.errors import UserError
from utils.evaluate import table
from utils.files import as_user_error
from utils.flags.evaluation import chosen

TOLERANCE = 1e-4  # of the largest logit
SPELLING = "skip: a bool per stage; true leaves out the second half of the stage's blocks; all false is the super-net"
INPUT = "images: N x 3 x H x W, float32, RGB, (x / 255 - mean) / std; shorter side resized, then the centre cropped"


def prepare(args: argparse.Namespace) -> Wanted:
    """The network that the arguments name, with its weights and what is known about both."""
    path = models.zoo.weights_file(args.weights, model=args.model)
    saved = models.read_weights(path, args.weights, args.model, args.model_ema)
    shape = {key: getattr(args, key, None) for key in SHAPE}
    size = image_of(saved.settings, args.image_size)["size"]
    model, name = models.network(saved, args.model, size, **shape), args.model or saved.settings["model"]
    classes = saved.classes or models.zoo.class_names(models.num_classes(saved.state))
    subnets = chosen(model, args.skip_cfg)
    if len(subnets) > 1 and not isinstance(model, models.AdaptiveDepth):
        raise UserError(f"one file of many is for depths: name one of {name}'s sub-networks by --skip-cfg")
    image = image_of(saved.settings, args.image_size or (model.size(subnets[0]) if len(subnets) == 1 else None))
    batch = args.batch or (1 if args.format == "executorch" else "dynamic")
    dynamic = batch == "dynamic"
    facts = {"model": name, "subnets": rows(model, name, subnets, image["size"], args.table)}
    facts |= {"skip": SPELLING} if isinstance(model, models.AdaptiveDepth) else {}
    facts |= {"input": INPUT, "image": image, "batch": batch, "classes": classes}
    facts |= {"calibrated": bool(model.statistics()), "averaged_weights": args.model_ema}
    images = random_images(2 if dynamic else batch, image["size"])
    if len(subnets) == 1 and model.image_macs(images, subnets[0]) is not None:
        raise UserError(f"{model.name(subnets[0])}: is another network for each image, a file is one")
    return Wanted(model, subnets, images, dynamic, facts)


def image_of(settings: Mapping[str, Any], size: int | None) -> dict[str, Any]:
    """How an image becomes input. Of another size, it is resized in the proportion that the weights are used to."""
    crop, resize = settings.get("val_crop_size") or 224, settings.get("val_resize_size") or 256
    size = size or crop
    rule = {"size": size, "resize": round(size * resize / crop), "interpolation": settings.get("interpolation")}
    mean, std = COLOURS[settings.get("normalize") or "imagenet"]
    return rule | {"interpolation": rule["interpolation"] or "bilinear", "mean": mean, "std": std}


def rows(
    model: models.AdaptiveDepth, name: str, subnets: list, size: int, measured: str | None
) -> list[dict[str, Any]]:
    """Each sub-network with its cost and, if a table has it, its accuracy."""
    accuracies = {}
    if measured:
        found, facts = table.read(measured, "--table")
        if facts.get("model") != name:
            raise UserError(f"--table {measured}: is of --model {facts.get('model')}, not {name}")
        accuracies = {row.name: {"top1": row.top1, "top5": row.top5} for row in found}
    unmeasured = {"top1": None, "top5": None}
    listed = []
    for skip in subnets:
        word, cost = model.name(skip), model.cost(skip, model.size(skip) or size)
        costs = {"gmacs": cost.macs / 1e9, "params_m": cost.parameters / 1e6}
        listed.append({"name": word, "skip": skip, **costs, **accuracies.get(word, unmeasured)})
    return listed


def write(form: ModuleType, wanted: Wanted, path: Path) -> tuple[int, int | None, dict[tuple[bool, ...], float]]:
    """The file's size, that of the super-net alone (None where the file is of one network), and the differences."""
    with staged(path) as file:
        with as_user_error(path, "cannot be written"):
            form.save(wanted, file)
        size, worst = size_of(file), check(form, wanted, file)
        alone = None
        if not wanted.alone:
            with tempfile.TemporaryDirectory() as folder, as_user_error(Path(folder), "cannot be written"):
                other = Path(folder, path.name)
                form.save(wanted._replace(subnets=wanted.model.subnets[:1]), other)
                alone = size_of(other)
    return size, alone, worst


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A file of this name in a new folder beside `path`. It and its companions move to their places at the end."""
    with as_user_error(path, "cannot be written"):
        if path.is_dir():
            raise UserError(f"{path}: cannot be written (it is a folder)")
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield folder / path.name
        with as_user_error(path, "cannot be written"):
            for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
                os.replace(file, path.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def size_of(path: Path) -> int:
    """With its external data, which is a file beside it."""
    return sum(file.stat().st_size for file in path.parent.iterdir() if file.suffix != ".json")


def check(form: ModuleType, wanted: Wanted, path: Path) -> dict[tuple[bool, ...], float]:
    """The largest relative difference of each sub-network's logits from torch's, on noise and on a picture.

    Raises an error if one is too large, or if the file is not as it should be.
    """
    for fault in form.faults(path) + leaks(path):
        raise UserError(f"{path.name}: {fault}; it was not written. This is a mistake of the export, not of yours")
    run, worst = form.runner(path), dict.fromkeys(wanted.subnets, 0.0)
    size = wanted.images.shape[-1]
    for count in (1, 5) if wanted.dynamic else (len(wanted.images),):
        for images in (random_images(count, size), pictures(count, size)):
            with torch.no_grad():
                expected = wanted.model.forward_all(images, wanted.subnets)
            for skip, logits in expected.items():
                found = difference(run(images, skip), logits)
                if not found <= TOLERANCE:  # not a number, too
                    what = f"the file's logits of {wanted.model.name(skip)} differ from torch's by {found:.1e}"
                    raise UserError(f"{path.name}: {what} of the largest; it was not written")
                worst[skip] = max(worst[skip], found)
    return worst


def difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("nan")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def leaks(path: Path) -> list[str]:
    """Folders of this machine that are named in a file."""
    content = path.read_bytes()
    places = Path.home(), Path.cwd(), Path(__file__).parent.parent, sys.prefix, torch.__path__[0]
    named = sorted({str(place) for place in places if f"{place}/".encode() in content})
    return [f"it names {place}" for place in named if len(place) > 4]  # shorter ones may be there by chance


def random_images(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def pictures(count: int, size: int) -> Tensor:
    """Smooth colours, as photographs are, from black to white."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(count))
    fine = interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in COLOURS["imagenet"])
    return (fine - mean) / std
