"""The command without training: `--test-only` and `--predict`. Introduces a network and its weights to utils/."""

import argparse
import logging
from functools import partial
from pathlib import Path

import torch

import models
import models.zoo
import sampler
from tools.assemble import (
    Saved,
    autocast_of,
    build_model,
    prepare_of,
    read_checkpoint,
    read_saved,
    saved_weights,
    skips_of,
)
from utils import processes as distributed
from utils.data.loading import Data, eval_loader, load_data
from utils.errors import UserError
from utils.evaluate.predict import run_predict
from utils.evaluate.report import Subject, run_test
from utils.evaluate.table import Budget
from utils.flags.data import fill_defaults
from utils.train import checkpoint

log = logging.getLogger(__name__)

OF_THE_IMAGES = ("val_resize_size", "val_crop_size", "interpolation")
OF_THE_NETWORK = ("stem", "patch_size", "window_size")


def run(args: argparse.Namespace, device: torch.device) -> int:
    """Test or predict; the exit code."""
    saved = _weights(args)
    fill_defaults(args, adopt(args, saved))
    return predict(args, device, saved) if args.predict else test(args, device, saved)


def _weights(args: argparse.Namespace) -> Saved | None:
    """What --weights or --resume names. Without either only --init-from is no oversight."""
    if not args.resume:
        if not args.weights and not args.init_from:
            raise UserError("--test-only and --predict need --weights: a file, or the name of a released network")
        return saved_weights(args)
    path = Path(args.resume)
    if args.resume == "auto":
        path = checkpoint.newest_readable(Path(args.output_dir), read_checkpoint)
        if path is None:
            raise UserError(f"--resume auto: no checkpoint in {args.output_dir}")
    return read_saved(path, args.model_ema)


def adopt(args: argparse.Namespace, saved: Saved | None) -> dict[str, object]:
    """Settings that the user left open are those the weights were made with, or were released with."""
    if saved is None:
        return {}
    if getattr(saved.args, "model", args.model) != args.model:
        raise UserError(f"{saved.source}: is of --model {saved.args.model}, not {args.model}")
    known = {name: getattr(saved.args, name, None) for name in (*OF_THE_IMAGES, *OF_THE_NETWORK)}
    return known | models.zoo.preprocessing(args.weights)


def test(args: argparse.Namespace, device: torch.device, saved: Saved | None) -> int:
    """--test-only."""
    data = load_data(args)
    if saved and saved.classes is not None and list(saved.classes) != list(data.classes):
        raise UserError(
            f"{saved.source}: was trained on other classes ({_few(saved.classes)}) than {data.name} has "
            f"({_few(data.classes)}): give the --data-path of its training"
        )
    model = build_model(args, len(data.classes), saved).to(device)
    if Budget.of(args) and args.skip_cfg is None:
        args.skip_cfg = ["all"]
    subnets = skips_of(args, model)
    subject = _subject(args, device, model, data)
    loader = eval_loader(data, args, sampler.EvalSampler(len(data.val), distributed.rank(), distributed.world_size()))
    run_test(subject, loader, subnets, args)
    return 0


def predict(args: argparse.Namespace, device: torch.device, saved: Saved | None) -> int:
    """--predict: no data needed, the weights know their classes, or how many there are."""
    if saved is None:
        raise UserError("--predict needs trained weights: give --weights, not --init-from")
    classes = saved.classes or class_names(models.num_classes(saved.state))
    model = build_model(args, len(classes), saved).to(device)
    run_predict(_subject(args, device, model, None), skips_of(args, model), classes, args)
    return 0


def class_names(count: int) -> list[str]:
    """ImageNet's names for its number of classes, else numbers."""
    names = models.zoo.IMAGENET_CLASSES
    return names if count == len(names) else [f"class {number}" for number in range(count)]


def _subject(args: argparse.Namespace, device: torch.device, model: models.AdaptiveDepth, data: Data | None) -> Subject:
    """The network as utils/ needs it; what the authors published of it is for comparison on data like theirs."""
    prepare = prepare_of(args, device, model)
    autocast, precision = autocast_of(args, device)
    if args.torch_compile:
        model.compile()
    facts = {
        "model": args.model,
        "weights": args.weights or args.resume,
        "data": data and data.name,
        "data_path": args.data_path,
        "device": args.device,
        "precision": precision,
        "memory_format": str(prepare.to_float.memory_format).removeprefix("torch."),
        "compiled": args.torch_compile,
        "averaged_weights": args.model_ema,
    }
    published = models.zoo.published(args.model) if data and len(data.classes) == 1000 else {}
    cost = partial(models.cost, model, image_size=args.val_crop_size)
    return Subject(model, prepare, autocast, models.subnet_name, cost, facts, published)


def _few(classes: list[str]) -> str:
    return f"{len(classes)}: {', '.join(map(str, classes[:3]))}{', …' if len(classes) > 3 else ''}"
