"""Real files, really decoded: what reaches the network, and how far it is from the classic chain."""

import argparse
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import InterpolationMode, transforms
from torchvision.transforms.functional import pil_to_tensor

import methods
import presets
from tests.pictures import bad_images, odd_images, scene
from utils.flags.arguments import parser
from utils.flags.data import POLICIES, fill_defaults


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return odd_images(tmp_path_factory.mktemp("odd"))


def arguments(*flags: str) -> argparse.Namespace:
    args = parser(methods).parse_args(["--train-crop-size", "32", *flags])
    fill_defaults(args)
    return args


def test_both_decoders_give_the_pixels_that_the_classic_loader_gives(odd):
    for name, path in odd.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = pil_to_tensor(pil_loader(str(path)))
        by_pil, by_tensor = pil_to_tensor(presets.decode_pil(str(path))), presets.decode_tensor(str(path))
        assert by_tensor.dtype == torch.uint8
        assert torch.equal(by_tensor, by_pil), name
        if name != "sixteen_bits":
            assert torch.equal(by_pil, expected), name


def test_sixteen_bits_become_the_high_eight_instead_of_white(odd):
    pixels = presets.decode_tensor(str(odd["sixteen_bits"]))
    with Image.open(odd["sixteen_bits"]) as image:
        assert np.array_equal(pixels[0].numpy(), np.asarray(image) >> 8)
    assert pixels.float().mean() == pytest.approx(127, abs=1)


def test_32_bits_that_hold_but_eight_stay_as_they_are(tmp_path):
    levels = np.arange(0, 240, 4, dtype=np.int32).reshape(6, 10)
    for factor in (1, 256):
        Image.fromarray(levels * factor).save(tmp_path / "grey.tif")
        assert np.array_equal(presets.decode_tensor(str(tmp_path / "grey.tif"))[0].numpy(), levels)
    dark = Image.fromarray((levels // 4).astype(np.uint16))
    dark.save(tmp_path / "dark.tif")
    assert presets.decode_tensor(str(tmp_path / "dark.tif")).max() == 0


def test_no_warning_about_broken_exif_reaches_the_user(odd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        presets.decode_pil(str(odd["broken_exif"]))


@pytest.mark.parametrize("decode", presets.DECODERS.values())
def test_what_is_no_image_is_one_of_the_decode_errors(decode, tmp_path):
    for name, path in bad_images(tmp_path).items():
        with pytest.raises(presets.DECODE_ERRORS) as caught:
            decode(str(path))
        assert str(caught.value), name
    with pytest.raises(presets.DECODE_ERRORS):
        decode(str(tmp_path / "missing.JPEG"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (60, 300), (41, 40)])
def test_evaluation_by_pil_is_the_classic_chain_to_the_bit_and_by_tensor_nearly(size, interpolation, tmp_path):
    path = str(tmp_path / "image.jpg")
    scene(*size).save(path, quality=90)
    mode = InterpolationMode(interpolation)
    classic = transforms.Compose([transforms.Resize(64, mode), transforms.CenterCrop(56), transforms.PILToTensor()])
    expected, ours = classic(pil_loader(path)), presets.eval_transform(64, 56, interpolation)
    assert torch.equal(ours(presets.decode_pil(path)), expected)
    difference = (ours(presets.decode_tensor(path)).int() - expected.int()).abs()
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("policy", [None, *POLICIES])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_every_policy_takes_every_interpolation_and_both_kinds_of_image(policy, interpolation):
    flags = ["--auto-augment", policy] if policy else []
    transform = presets.train_transform(arguments(*flags, "--interpolation", interpolation, "--random-erase", "0.5"))
    image, differ = scene(), False
    for kind in (image, pil_to_tensor(image)):
        looks = [transform(kind) for _ in range(12)]
        assert {(look.shape, look.dtype) for look in looks} == {(torch.Size([3, 32, 32]), torch.uint8)}
        differ |= any(not torch.equal(look, looks[0]) for look in looks)
    assert differ
    assert torch.backends.mkldnn.enabled


def test_erased_pixels_are_zero_after_normalisation():
    white = torch.full((3, 40, 40), 255, dtype=torch.uint8)
    erased = presets.train_transform(arguments("--random-erase", "1"))(white)
    values = presets.ToFloat()(erased[None])[0].flatten(1).T
    rows = values[(values - values.max(dim=0).values).abs().sum(dim=1) > 1]
    assert 0 < len(rows) < len(values)
    assert rows.abs().max() < 0.5 / 255 / min(presets.IMAGENET_STD) + 1e-6


def test_flips_and_shifts_stay_within_what_the_flags_allow():
    """A small image is shifted by at most an eighth and, at probability 0, never mirrored."""
    place = torch.zeros(3, 32, 32, dtype=torch.uint8)
    place[:, 10, 20] = 255
    transform = presets.train_transform(arguments("--hflip-prob", "0"), zoom=False)
    found = [divmod(int(transform(place)[0].argmax()), 32) for _ in range(200)]
    rows, columns = {row for row, _ in found}, {column for _, column in found}
    assert rows == set(range(6, 15))
    assert columns == set(range(16, 25))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_to_float_is_the_classic_normalisation_and_keeps_the_layout(layout):
    images = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8).contiguous(memory_format=layout)
    classic = transforms.Normalize(presets.IMAGENET_MEAN, presets.IMAGENET_STD)(images.float() / 255)
    ours = presets.ToFloat()(images)
    torch.testing.assert_close(ours, classic, atol=2e-6, rtol=1e-5)
    assert ours.is_contiguous(memory_format=layout)
    assert presets.ToFloat(memory_format=torch.channels_last)(images).is_contiguous(memory_format=torch.channels_last)
    assert not list(presets.ToFloat().state_dict())
