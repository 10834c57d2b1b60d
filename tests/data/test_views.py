"""Several views of a batch: one crop at several sizes, from the files to the device."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

import models
import presets
from tests.data.test_loading import arguments, batches
from tests.pictures import image_folder, scene
from transforms import BatchMix
from utils.data.device import OnDevice
from utils.data.loading import eval_loader, load_data
from utils.errors import UserError
from utils.flags.data import fill_defaults
from utils.rng import seeded
from utils.setup import set_up

SIZES = (224, 192, 160, 128, 96)


def filled(**given: object) -> SimpleNamespace:
    args = arguments("/data", *given.pop("flags", ()))
    for name in ("sizes", "train_crop_size", "val_crop_size", "val_resize_size", "normalize"):
        setattr(args, name, given.pop(name, None))
    fill_defaults(args, **given)
    return args


def test_sizes_are_the_crops_and_by_default_in_proportion_to_them():
    args = filled(usual_sizes=SIZES)
    assert (args.sizes, args.train_crop_size, args.val_crop_size, args.val_resize_size) == (list(SIZES), 224, 224, 256)
    assert filled(usual_sizes=SIZES, train_crop_size=32).sizes == [32, 27, 23, 18, 14]
    assert filled().sizes is None
    known = {"sizes": [112, 96], "val_crop_size": 112, "val_resize_size": 120, "normalize": "none"}
    args = filled(usual_sizes=SIZES, known=known)
    assert (args.sizes, args.val_crop_size, args.val_resize_size, args.normalize) == ([112, 96], 112, 120, "none")
    args = filled(usual_sizes=SIZES, known=known, sizes=[64, 48])
    assert (args.sizes, args.val_crop_size, args.val_resize_size) == ([64, 48], 64, 73)
    for given, reason in (
        ({"sizes": [96, 112]}, "--sizes 96 112: give each once, the largest first"),
        ({"sizes": [112, 96], "train_crop_size": 128}, "--train-crop-size 128 is another"),
        ({"sizes": [112, 96], "flags": ("--cutmix-alpha", "1")}, "--cutmix-alpha pastes places"),
    ):
        with pytest.raises(UserError, match=reason):
            filled(**given)


def test_the_views_of_one_crop_are_flipped_by_themselves():
    args = filled(sizes=[32, 24, 16])
    transform, image, equal = presets.train_transform(args), pil_to_tensor(scene(200, 160)), set()
    for seed in range(30):
        with seeded(seed):
            views = transform(image)
        assert [(view.shape, view.dtype) for view in views] == [((3, side, side), torch.uint8) for side in args.sizes]
        small = [v2.functional.resize(view, [16, 16]).float() for view in views]
        flips = [min((True, False), key=lambda flip, one=one: _distance(one, small[0], flip)) for one in small[1:]]
        assert all(_distance(one, small[0], flip) < 12 for one, flip in zip(small[1:], flips, strict=True))
        equal.add(tuple(flips))
    assert len(equal) == 4, "whether two views are mirror images is chance"


def _distance(one: torch.Tensor, other: torch.Tensor, flip: bool) -> float:
    return (one - (other.flip(2) if flip else other)).abs().mean().item()


@pytest.mark.parametrize("decode", [lambda image: image, pil_to_tensor])
def test_one_size_is_the_classic_crop_to_the_bit(decode):
    ours = presets.train_transform(filled(train_crop_size=32, flags=("--hflip-prob", "0.5")))
    steps = [v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(0.5), v2.PILToTensor()]
    for seed in range(5):
        image = decode(scene(90, 70, seed))
        with seeded(seed):
            found = ours(image)
        with seeded(seed):
            assert torch.equal(found, v2.Compose(steps)(image))


def test_views_to_test_are_resized_and_cropped_as_the_authors_do_it():
    args = filled(usual_sizes=SIZES)
    sizes = (*SIZES, 208, 176, 144, 112)
    image = scene(300, 260)
    for side, view in zip(sizes, presets.test_transform(args, sizes)(image), strict=True):
        resized = PIL.Image.Image.resize(image, _shorter(image, int(side / 0.875)), PIL.Image.Resampling.BILINEAR)
        assert torch.equal(view, pil_to_tensor(v2.functional.center_crop(resized, [side])))


def _shorter(image: PIL.Image.Image, side: int) -> tuple[int, int]:
    return int(side * image.width / min(image.size)), int(side * image.height / min(image.size))


def test_batches_of_views_reach_the_device_alike_with_any_number_of_workers(tmp_path):
    folder = image_folder(tmp_path, train=5, val=3)
    (folder / "train" / "cat" / "broken.JPEG").write_bytes(b"no image")
    flags = ("--sizes", "24", "20", "16", "--on-corrupt", "skip", "--normalize", "none")
    looks = []
    for workers in (0, 2):
        args = arguments(folder, *flags, "--workers", str(workers))
        data = load_data(args, test_sizes=[18, 16])
        looks.append([*batches(data, args), *eval_loader(data, args)])
    for ours, theirs in zip(*looks, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours.images, theirs.images, strict=True))
    assert [view.shape[-1] for view in looks[0][0].images] == [24, 20, 16]
    assert [view.shape[-1] for view in looks[0][-1].images] == [18, 16]
    assert any(batch.corrupt for batch in looks[0])
    machine = set_up(torch.device("cpu"), 0, False, None, args.normalize)
    on_device = machine.place(models.build("meta_resnet20", sizes=args.sizes), None)
    assert isinstance(on_device, OnDevice)
    for given, found in zip(looks[0], on_device(looks[0]), strict=True):
        for before, after in zip(given.images, found.images, strict=True):
            torch.testing.assert_close(after, before / 255)
            assert after.is_contiguous(memory_format=torch.channels_last)


def test_every_view_is_mixed_with_the_same_neighbour_and_share():
    images = torch.rand(6, 3, 8, 8)
    views, labels = [images, images[..., ::2, ::2]], torch.arange(6)
    mix, seed = BatchMix(10, mixup_alpha=1.0), torch.Generator().manual_seed
    (large, small), targets = mix(views, labels, seed(3))
    assert torch.equal(small, large[..., ::2, ::2])
    alone, expected = mix(images, labels, seed(3))
    assert torch.equal(alone, large)
    assert torch.equal(expected, targets)
    assert np.isclose(targets.sum(), 6)
