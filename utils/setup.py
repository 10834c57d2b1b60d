"""What a run computes with: device, random numbers, precision, memory layout."""

import contextlib
import os
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from utils.errors import UserError


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


def set_up(device: torch.device, seed: int, deterministic: bool) -> None:
    """Random numbers and kernels. On a GPU matrix products of float32 run in TF32, as convolutions do by default."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if device.type == "cuda" and not deterministic:
        torch.set_float32_matmul_precision("high")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def precision_of(amp: bool, dtype: str, device: torch.device) -> str:
    """fp32, bf16 or fp16. `dtype` auto: bf16 where the hardware has it."""
    if not amp:
        return "fp32"
    bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return dtype if dtype != "auto" else ("bf16" if bf16 else "fp16")


def autocast_of(precision: str, device: torch.device) -> Callable[[], contextlib.AbstractContextManager]:
    """What to enter around a forward pass."""
    if precision == "fp32":
        return contextlib.nullcontext
    return partial(torch.autocast, device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def layout_of(model: nn.Module, channels_last: bool | None) -> torch.memory_format:
    """Channels-last pays for networks of convolutions; a transformer has but one."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    wanted = convolutions > 1 if channels_last is None else channels_last
    return torch.channels_last if wanted else torch.contiguous_format


def refuse_single_values(model: nn.Module, batch_size: int, image_size: int) -> None:
    """A batch norm trains on the spread of a channel's values; in a batch of one image a map may have shrunk to one.

    Found out by a forward pass of shapes alone, before the first real one.
    """
    if batch_size > 1:
        return
    network = model.view(model.subnets[0]).train()
    meta = {name: torch.empty_like(p, device="meta") for name, p in network.state_dict(keep_vars=True).items()}
    try:
        torch.func.functional_call(network, meta, torch.empty(1, 3, image_size, image_size, device="meta"))
    except ValueError:
        raise UserError(
            f"--batch-size {batch_size}: a batch norm has but one value per channel here, which has no spread; "
            "give larger batches or, by --train-crop-size, larger images"
        ) from None
