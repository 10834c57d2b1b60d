"""From arguments to the objects that training and testing share: device, network, weights, precision, layout."""

import argparse
import contextlib
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import models
import models.zoo
import presets
from utils.errors import UserError
from utils.train import engine


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; use cuda, cpu or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: no CUDA GPU can be used here; use --device cpu, or look into driver and torch build"
        )
    return device


def seed_everything(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(args.deterministic)


def build_model(args: argparse.Namespace, classes: int, saved: "Saved | None" = None) -> models.AdaptiveDepth:
    """The network for so many classes, with the weights of --init-from or `saved` if there are any."""
    size = args.val_crop_size if args.test_only or args.predict else args.train_crop_size
    try:
        model = models.build(
            args.model,
            num_classes=classes,
            stem=args.stem,
            patch_size=args.patch_size,
            window_size=args.window_size,
            image_size=size,
            switchable_norms=not args.no_switchable_norms,
        )
    except (ValueError, AssertionError) as error:
        raise UserError(f"--model {args.model}: {error}") from None
    if args.init_from:
        models.load_plain(model, plain_weights(args), new_head=True)
    if saved:
        models.load_state(model, saved.state, source=saved.source)
    return model


@dataclass(frozen=True)
class Saved:
    """A file of weights that was read."""

    source: str
    content: dict
    state: dict[str, Tensor]

    @property
    def args(self) -> argparse.Namespace:
        """Those of the run that saved it; none in a plain state dict."""
        return self.content.get("args") or argparse.Namespace()

    @property
    def classes(self) -> list[str] | None:
        """The names of its classes, if it says them."""
        return self.content.get("classes")


def saved_weights(args: argparse.Namespace) -> Saved | None:
    """What --weights names; with --model-ema the averaged weights of a checkpoint that has them beside the others."""
    if not args.weights:
        return None
    path = models.zoo.weights_file(args.weights, model=args.model, url=args.weights_url, folder=args.weights_dir)
    return read_saved(path, args.model_ema)


def read_saved(path: Path, ema: bool) -> Saved:
    content = read_checkpoint(path)
    return Saved(str(path), content, models.model_state(content, ema=ema, source=str(path)))


def plain_weights(args: argparse.Namespace) -> dict | object:
    """What --init-from names: a file, or one of torchvision's enums for this model."""
    if Path(args.init_from).exists():
        return models.read_checkpoint(args.init_from)
    try:
        return torchvision.models.get_model_weights(args.model)[args.init_from]
    except (KeyError, ValueError):
        raise UserError(
            f"--init-from {args.init_from}: neither a file nor weights that torchvision has of {args.model}"
        ) from None


def autocast_of(args: argparse.Namespace, device: torch.device) -> tuple[Callable, str]:
    """What to enter around a forward pass, and the name of the precision inside."""
    if not args.amp:
        return contextlib.nullcontext, "fp32"
    bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    choice = args.amp_dtype if args.amp_dtype != "auto" else ("bf16" if bf16 else "fp16")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[choice]
    return partial(torch.autocast, device.type, dtype=dtype), choice


def layout(args: argparse.Namespace, model: nn.Module) -> torch.memory_format:
    """Channels-last pays for networks of convolutions; a transformer has but one."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    wanted = convolutions > 1 if args.channels_last is None else args.channels_last
    return torch.channels_last if wanted else torch.contiguous_format


def prepare_of(args: argparse.Namespace, device: torch.device, model: nn.Module) -> engine.Prepare:
    memory_format = layout(args, model)
    model.to(memory_format=memory_format)
    return engine.Prepare(device, presets.ToFloat(memory_format=memory_format))


def skips_of(args: argparse.Namespace, model: models.AdaptiveDepth) -> list[Hashable]:
    try:
        return models.parse_skips(args.skip_cfg, model.num_skippable_stages)
    except ValueError as error:
        raise UserError(f"--skip-cfg: {error}") from None


def read_checkpoint(path: Path) -> dict:
    try:
        return models.read_checkpoint(path)
    except models.WeightsError as error:
        raise UserError(str(error)) from None
