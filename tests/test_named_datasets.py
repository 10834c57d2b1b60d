"""The bundled digits as they are published, and the idx files of Fashion-MNIST wherever they lie."""

import argparse
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_data import arguments
from utils import named_datasets
from utils.data import load_data
from utils.data_flags import SMALL, complete, data_flags
from utils.errors import UserError

FASHION = {"train": 20, "t10k": 10}


def fashion_files(folder: Path, packed: bool = True) -> dict[str, np.ndarray]:
    """The four files with few images, written by the format's definition."""
    folder.mkdir(parents=True, exist_ok=True)
    random, written = np.random.default_rng(0), {}
    for part, count in FASHION.items():
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8) % 10)):
            name = f"{part}-{kind}-ubyte"
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            content = header + array.tobytes()
            (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
            written[name] = array
    return written


@pytest.fixture(autouse=True)
def _no_debian_package(monkeypatch, tmp_path):
    monkeypatch.setattr(named_datasets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")


def test_digits_are_all_there_split_alike_in_every_class():
    data = named_datasets.digits()
    assert len(data.train.images) + len(data.val.images) == 1797
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert (data.train.images.dtype, int(data.train.images.max())) == (torch.uint8, 255)
    counts = torch.stack([part.targets.bincount() for part in (data.train, data.val)])
    assert counts[1].tolist() == (counts.sum(dim=0) // 5).tolist()
    with np.load(named_datasets.DIGITS, allow_pickle=False) as kept:
        levels = torch.from_numpy(kept["images"]).float() * 255 / 16
        assert named_datasets.DIGITS.stat().st_size < 100_000
    together = torch.cat([data.train.images, data.val.images]).float().sum(dim=(1, 2, 3)).sort().values
    assert (together - levels.sum(dim=(1, 2)).sort().values).abs().max() < 64 * 0.5


def test_digits_of_a_class_look_alike():
    """Images and targets belong together: the nearest training image already tells the digit."""
    data = named_datasets.digits()
    distance = torch.cdist(data.val.images.flatten(1).float(), data.train.images.flatten(1).float())
    assert (data.train.targets[distance.argmin(dim=1)] == data.val.targets).float().mean() > 0.95


def test_digits_from_the_command_line_are_coloured_sized_and_never_mirrored():
    parser = argparse.ArgumentParser()
    data_flags(parser)
    args = parser.parse_args(["--data-path", "digits"])
    args.batch_size, args.device, args.test_only, args.seed = 8, "cpu", False, 0
    data = load_data(args)
    assert (args.hflip_prob, args.train_crop_size, args.workers) == (0, 32, 0)
    image, target = data.val[0]
    assert image.shape == data.train[0, 5, 0][0].shape == (3, 32, 32)
    assert torch.equal(image[0], image[1])
    assert target == int(data.val.targets[0])
    assert data.classes == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw", "../debian"])
def test_fashion_mnist_is_found_packed_or_not_in_each_place(tmp_path, packed, place):
    written = fashion_files((tmp_path / "down" / place).resolve(), packed)
    data = named_datasets.fashion_mnist(tmp_path / "down", download=False)
    assert np.array_equal(data.train.images[:, 0].numpy(), written["train-images-idx3-ubyte"])
    assert np.array_equal(data.val.targets.numpy(), written["t10k-labels-idx1-ubyte"])
    assert len(data.classes) == 10


def test_fashion_mnist_through_the_command_line(tmp_path):
    fashion_files(tmp_path)
    args = arguments("fashion-mnist", "--download-dir", str(tmp_path))
    data = load_data(args)
    assert (len(data.train), len(data.val), data.name) == (20, 10, "fashion-mnist")
    assert data.train[0][0].shape == (3, 24, 24)


@pytest.mark.parametrize("damage", ["truncated", "missing", "not gzip"])
def test_damaged_files_are_named(tmp_path, damage):
    fashion_files(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = {"truncated": path.read_bytes()[:500], "not gzip": b"<html>"}.get(damage)
    path.unlink()
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        named_datasets.fashion_mnist(tmp_path, download=False)


def test_an_idx_file_cut_inside_is_named(tmp_path):
    fashion_files(tmp_path, packed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a whole idx file"):
        named_datasets.fashion_mnist(tmp_path, download=False)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"digits"}))
def test_what_is_not_there_is_said_with_the_way_to_get_it(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} is not in {tmp_path}: pass --download"):
        load_data(arguments(name, "--download-dir", str(tmp_path)))


def test_cifar_arrays_keep_pixels_and_classes(tmp_path):
    """The layout that torchvision hands out: N x 32 x 32 x 3 and a list."""
    stored = argparse.Namespace(data=np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8))
    stored.targets = [3, 1, 4, 1, 5]
    arrays = named_datasets._cifar_arrays(stored)
    assert arrays.images[2, 1, 7, 9] == stored.data[2, 7, 9, 1]
    assert arrays.targets.tolist() == stored.targets


def test_defaults_follow_the_data_and_yield_to_the_user():
    for name, size in (("digits", 32), ("fashion-mnist", 28), ("/some/folder", 224)):
        parser = argparse.ArgumentParser()
        data_flags(parser)
        args = parser.parse_args(["--data-path", name, "--hflip-prob", "0.3"])
        args.batch_size = 8
        complete(args)
        assert (args.train_crop_size, args.val_crop_size, args.hflip_prob) == (size, size, 0.3)
