"""An image file becomes a uint8 tensor here, for training and for evaluation; `ToFloat` does the rest on the device.

Two decoders: `pil` walks torchvision's classic PIL chain, `tensor` uses torchvision's own JPEG decoder and transforms
on uint8 tensors and asks PIL about files that the decoder refuses. It is about twice as fast; when only resized and
cropped, fewer than one value in a hundred differs, by a grey level or two (torchvision 0.21: one in five). Evaluation
uses `pil` unless told otherwise, so that published accuracies are met bit for bit. Normalisation waits for the device:
a quarter of the bytes travel, and the workers' cores are left to decoding.
"""

import struct
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import PIL.Image
import torch
from PIL.Image import DecompressionBombError
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
COLOURS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "none": ((0.0,) * 3, (1.0,) * 3)}  # by --normalize
MEAN_COLOUR = [round(255 * mean) for mean in IMAGENET_MEAN]

# Whatever PIL and libjpeg raise on files that are not the images they claim to be.
DECODE_ERRORS = (OSError, EOFError, SyntaxError, ValueError, RuntimeError, struct.error, DecompressionBombError)

Image = Tensor | PIL.Image.Image


def decode_pil(path: str | bytes) -> PIL.Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken EXIF and odd palettes do not hurt the pixels
        with open(path, "rb") as file, PIL.Image.open(file) as image:
            if image.mode.startswith("I"):  # grey of 16 or 32 bits; PIL clips at 255, that is makes it white
                levels = np.asarray(image)
                if image.mode != "I" or levels.max() > 255:  # 32 bits often hold but eight
                    levels = levels >> 8  # the high byte of 16
                image = PIL.Image.fromarray(levels.clip(0, 255).astype(np.uint8))
            return image.convert("RGB")


def decode_tensor(path: str | bytes) -> Tensor:
    """RGB, uint8, channels first. The JPEG decoder gives PIL's pixels; everything it refuses, PIL decodes."""
    data = np.fromfile(path, np.uint8)
    if data[:2].tobytes() == b"\xff\xd8":
        try:
            return decode_jpeg(torch.from_numpy(data), mode=ImageReadMode.RGB)
        except RuntimeError:
            pass  # PIL reads some of what libjpeg refuses, and says better what is wrong with the rest
    return pil_to_tensor(decode_pil(path))


DECODERS: dict[str, Callable[[str | bytes], Image]] = {"pil": decode_pil, "tensor": decode_tensor}


class RandomZoom(v2.RandomResizedCrop):
    """The crop alone, of any size: each view resizes it to its own."""

    def transform(self, inpt: Image, params: dict) -> Image:
        return self._call_kernel(v2.functional.crop, inpt, **params)


def train_transform(
    args: Namespace, zoom: bool = True, sizes: Sequence[int] | None = None
) -> Callable[[Image], Tensor | list[Tensor]]:
    """Decoded image -> uint8 tensor. Without `zoom` (CIFAR, …) an image is shifted by up to an eighth instead.

    With several `sizes` (of --sizes, if not said) one crop becomes a view of each, flipped and augmented by itself.

    The reference erases after normalisation, with 0; here the bytes are erased with the mean colour, which becomes that
    0 to within half a grey level.
    """
    size, interpolation = args.train_crop_size, v2.InterpolationMode(args.interpolation)
    views = [_view(args, side, interpolation) for side in sizes or args.sizes or [size]]
    if zoom:
        return v2.Compose([RandomZoom(size), several(views)])
    return v2.Compose([v2.Resize(size, interpolation), v2.RandomCrop(size, padding=size // 8), several(views)])


def _view(args: Namespace, size: int, interpolation: v2.InterpolationMode) -> v2.Compose:
    """A crop -> uint8 tensor."""
    steps = [v2.Resize((size, size), interpolation)]
    if args.hflip_prob > 0:
        steps.append(v2.RandomHorizontalFlip(args.hflip_prob))
    # torchvision turns and shears tensors bilinearly at best: with bicubic PIL does it, as in the reference.
    bicubic = args.interpolation == "bicubic"
    if args.auto_augment == "augmix":  # works on tensors inside, also where the image is PIL's
        simple = v2.InterpolationMode.BILINEAR if bicubic else interpolation
        steps.append(partial(_without_onednn, v2.AugMix(severity=args.augmix_severity, interpolation=simple)))
    elif args.auto_augment:
        if args.auto_augment == "ra":
            augment = v2.RandAugment(magnitude=args.ra_magnitude, interpolation=interpolation)
        elif args.auto_augment == "ta_wide":
            augment = v2.TrivialAugmentWide(interpolation=interpolation)
        else:
            augment = v2.AutoAugment(v2.AutoAugmentPolicy(args.auto_augment), interpolation=interpolation)
        steps.extend([v2.ToPILImage(), augment] if bicubic else [partial(_without_onednn, augment)])
    steps.append(v2.PILToTensor())
    if args.random_erase > 0:
        steps.append(v2.RandomErasing(args.random_erase, value=MEAN_COLOUR if args.normalize == "imagenet" else 0))
    return v2.Compose(steps)


def several(transforms: Sequence[Callable[[Image], Tensor]]) -> Callable[[Image], Tensor | list[Tensor]]:
    """Of one image a view by each of these; a single one is given as it is."""
    return transforms[0] if len(transforms) == 1 else partial(_each, transforms)


def _each(transforms: Sequence[Callable[[Image], Tensor]], image: Image) -> list[Tensor]:
    return [transform(image) for transform in transforms]


def _without_onednn(augment: v2.Transform, image: Image) -> Image:
    """oneDNN's convolution is made for many channels: torch's own sharpens a colour image ten times as fast."""
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        return augment(image)
    finally:
        torch.backends.mkldnn.enabled = enabled


def eval_transform(resize_size: int = 256, crop_size: int = 224, interpolation: str = "bilinear") -> v2.Compose:
    """Decoded image -> uint8 tensor: the shorter side resized, the centre cropped."""
    resize = v2.Resize(resize_size, v2.InterpolationMode(interpolation))
    return v2.Compose([resize, v2.CenterCrop(crop_size), v2.PILToTensor()])


def test_transform(args: Namespace, sizes: Sequence[int]) -> Callable[[Image], Tensor | list[Tensor]]:
    """The views of these sizes, each resized and cropped as --val-resize-size and --val-crop-size are to each other."""
    resized = {size: size * args.val_resize_size // args.val_crop_size for size in sizes}
    return several([eval_transform(resize, size, args.interpolation) for size, resize in resized.items()])


class ToFloat(nn.Module):
    """uint8 images -> normalised float images, (x / 255 - mean) / std as one multiply-add, on the device of the images.

    `memory_format` torch.channels_last hands networks of convolutions what they like; without it the layout is kept.
    """

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD, memory_format=torch.preserve_format):
        super().__init__()
        mean, std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.memory_format = memory_format

    def forward(self, images: Tensor) -> Tensor:
        if self.memory_format != torch.preserve_format:
            images = images.contiguous(memory_format=self.memory_format)  # while they are still a quarter of the size
        return torch.addcmul(self.shift, images, self.scale)
