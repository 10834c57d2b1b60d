"""A frozen teacher from outside: weights with a name, or a file, become a network that is called with images.

`resnet101` or another name of torchvision's or `timm:NAME` (with their published weights), a released network of ours,
a checkpoint of ours, or a TorchScript file, which takes images normalised as torchvision's. It gives logits.
"""

import zipfile
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from . import zoo
from .saved import network, read_weights
from .weights import WeightsError, read_checkpoint

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of ImageNet
Colours = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation
IMAGENET, NONE = (MEAN, STD), ((0.0,) * 3, (1.0,) * 3)


class Teacher(nn.Module):
    """The network, in evaluation mode and without gradients, after what its images need."""

    classes: list[str] | None = None  # their names, if its file says them

    def __init__(
        self, network: nn.Module, size: int | None = None, wants: Colours = IMAGENET, given: Colours = IMAGENET
    ) -> None:
        super().__init__()
        self.network, self.size = network.eval(), size
        for parameter in network.parameters():
            parameter.requires_grad = False
        (mean, std), (our_mean, our_std) = wants, given
        scale = [ours / theirs for ours, theirs in zip(our_std, std, strict=True)]
        shift = [(ours - theirs) / by for ours, theirs, by in zip(our_mean, mean, std, strict=True)]
        self.as_given = (tuple(mean), tuple(std)) == given
        self.register_buffer("scale", torch.tensor(scale).view(-1, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(-1, 1, 1))

    def train(self, mode: bool = True) -> "Teacher":
        return self

    def forward(self, images: Tensor) -> Tensor:
        if self.size is not None and images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.network(images if self.as_given else torch.addcmul(self.shift, images, self.scale))

    def sum(self) -> str:
        """Of its weights: the same teacher has the same."""
        total = 0
        for name, tensor in self.network.state_dict().items():
            flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            total = zlib.crc32(flat.numpy(), zlib.crc32(name.encode(), total))
        return f"{total:08x}"


def load(name: str, *, subnet: str | None = None, size: int | None = None, given: Colours = IMAGENET) -> Teacher:
    """The teacher that `name` means; of many networks in one, `subnet` (by default the largest).

    `given`: how the images are normalised that it is called with.
    """
    wants, classes = IMAGENET, None
    if name.startswith("timm:"):
        found, wants = _timm(name.removeprefix("timm:"))
    elif Path(name).is_file() and _is_torchscript(Path(name)):
        found = torch.jit.load(name, map_location="cpu")
    elif Path(name).is_file() or name in zoo.RELEASED:
        (found, classes, wants), subnet = _ours(name, subnet), None
    else:
        found = _torchvision(name)
    if subnet is not None:
        raise WeightsError(f"--teacher-subnet {subnet}: {name} is one network")
    teacher = Teacher(found, size, wants, given)
    teacher.classes = classes
    return teacher


def check(teacher: Teacher, name: str, classes: int, size: int) -> None:
    """Try it on a blank image of this size."""
    try:
        with torch.no_grad():
            logits = teacher(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:  # whatever a network says of images it does not take
        problem = f"fails on images of {size} pixels ({' '.join(str(error).split())[-120:]})"
        raise WeightsError(f"--teacher {name}: {problem}; --teacher-size resizes them") from None
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise WeightsError(f"--teacher {name}: gives {shape} for an image, not the logits of {classes} classes")


def _ours(name: str, subnet: str | None) -> tuple[nn.Module, list[str] | None, Colours]:
    saved = read_weights(zoo.weights_file(name), name)
    model = network(saved)
    try:
        found = model.extract(model.checked(subnet and model.parse(subnet)))
    except ValueError as error:
        raise WeightsError(f"--teacher-subnet: {error}") from None
    return found, saved.classes, NONE if saved.settings.get("normalize") == "none" else IMAGENET


def _torchvision(name: str) -> nn.Module:
    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError):
        way_out = "give a file, a name of torchvision's, timm:NAME, or one of " + ", ".join(zoo.RELEASED)
        raise WeightsError(f"--teacher {name}: neither a file nor a network that is known; {way_out}") from None
    settings: dict[str, object] = {}  # those that torchvision sets by itself only where it reads the weights, too
    if name in ("googlenet", "inception_v3"):
        settings = {"transform_input": True, "init_weights": False}
    elif name.startswith("vit_"):
        settings = {"image_size": weights.meta["min_size"][0]}
    network = torchvision.models.get_model(name, weights=None, **settings)
    network.load_state_dict(read_checkpoint(zoo.fetched(weights)))
    return network


def _timm(name: str) -> tuple[nn.Module, Colours]:
    try:
        import timm
    except ImportError:
        raise WeightsError(f"--teacher timm:{name} needs timm: pip install timm") from None
    try:
        network = timm.create_model(name, pretrained=True)
    except (RuntimeError, OSError) as error:  # an unknown name; no connection
        raise WeightsError(f"--teacher timm:{name}: {' '.join(str(error).split())[:160]}") from None
    return network, (network.pretrained_cfg["mean"], network.pretrained_cfg["std"])


def _is_torchscript(path: Path) -> bool:
    """By its archive. torch.export's files are refused: torch reads them by unpickling, which can run code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith((".pt2", "model.json", "serialized_exported_program.json")) for name in names):
        way_out = "save the teacher with torch.jit.trace(...).save"
        raise WeightsError(f"--teacher {path}: reading a file of torch.export could run code in it; {way_out}")
    return any("/code/" in name for name in names)
