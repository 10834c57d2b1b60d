"""What a run computes with: device, random numbers, precision, memory layout."""

import contextlib
import logging
import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from presets import COLOURS, ToFloat
from utils.data.device import OnDevice
from utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """A device, and the type of number in a forward pass: fp32, bf16 or fp16."""

    device: torch.device
    precision: str
    normalize: str = "imagenet"  # a key of presets.COLOURS

    def autocast(self) -> contextlib.AbstractContextManager:
        """Enter it around a forward pass."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision])

    def place(self, model: nn.Module, channels_last: bool | None) -> OnDevice:
        """Bring a network onto the device in the layout that suits it, or that is asked for; give what brings batches.

        Channels-last pays for networks of convolutions; a transformer has but one.
        """
        if channels_last is None:
            channels_last = sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model.to(device=self.device, memory_format=layout)
        return OnDevice(self.device, ToFloat(*COLOURS[self.normalize], memory_format=layout))


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "cpu"):  # sums are float64, which others do not all have
        raise UserError(f"--device {name}: use cuda, cpu or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        way_out = "use --device cpu, or look into driver and torch build"
        raise UserError(f"--device {name}: no CUDA GPU can be used here; {way_out}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs here, counted from 0")
    return device


def set_up(
    device: torch.device,
    seed: int,
    deterministic: bool,
    amp_dtype: str | None,
    normalize: str = "imagenet",
    few_shapes: bool = True,
) -> Machine:
    """Random numbers, kernels and precision. `amp_dtype`: None without mixed precision, else auto, bf16 or fp16.

    `few_shapes`: whether it pays to search the best algorithm for each shape of a convolution when it is first met.

    On a GPU matrix products of float32 run in TF32, as torch's convolutions do anyway, unless all is deterministic.
    """
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = few_shapes and not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    elif device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(deterministic)
    precision = fastest_precision(device) if amp_dtype == "auto" else amp_dtype or "fp32"
    return Machine(device, precision, normalize)


def fastest_precision(device: torch.device) -> str:
    """What --amp takes: bfloat16 on hardware that computes in it, else the next best there."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():  # none public tells it
        return "bf16"
    log.warning("--amp: float32, since this CPU emulates bfloat16, many times slower (--amp-dtype bf16 insists on it)")
    return "fp32"


def refuse_another_size(model: nn.Module, val_crop_size: int) -> None:
    """A network of one image size, as its position embedding makes it, is tested on images of the size it trains on."""
    size = getattr(model, "image_size", val_crop_size)
    if size != val_crop_size:
        raise UserError(
            f"--val-crop-size {val_crop_size}: this network takes images of one size, which --train-crop-size makes "
            f"{size}: give --val-crop-size {size} and a --val-resize-size to go with it, such as {round(size * 8 / 7)}"
        )


def refuse_other_views(model: nn.Module, subnets: Iterable[Hashable], sizes: Sequence[int]) -> None:
    """Of a network of several resolutions each sub-network sees images of its own size, which must be there."""
    for subnet in subnets:
        if model.size(subnet) not in (None, *sizes):
            needed = f"{model.name(subnet)} takes images of {model.size(subnet)}"
            raise UserError(f"--sizes {' '.join(map(str, sizes))}: {needed}, which are not among them")


def refuse_single_values(model: nn.Module, batch_size: int, image_size: int) -> None:
    """A batch norm trains on the spread of a channel's values; in a batch of one image a map may have shrunk to one.

    Found out by a forward pass of shapes alone, before the first real one.
    """
    if batch_size > 1:
        return
    network = model.extract(model.subnets[0]).train()
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in network.state_dict().items()}
    try:
        torch.func.functional_call(network, meta, torch.empty(1, 3, image_size, image_size, device="meta"))
    except ValueError:
        raise UserError(
            f"--batch-size {batch_size}: a batch norm has but one value per channel here, which has no spread; "
            "give larger batches or, by --train-crop-size, larger images"
        ) from None
