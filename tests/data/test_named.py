"""The bundled digits as they are published, and the idx files of Fashion-MNIST wherever they lie."""

import functools
import gzip
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, FashionMNIST

import methods
from tests.data.test_loading import arguments
from utils.data import named as named_datasets
from utils.data.loading import load_data
from utils.errors import UserError
from utils.flags.arguments import parser
from utils.flags.data import NAMED, fill_defaults, habits_of

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
    args = parser(methods).parse_args(["--data-path", "digits"])
    fill_defaults(args)
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


@pytest.mark.parametrize("damage", ["truncated", "not gzip"])
def test_damaged_files_are_named(tmp_path, damage):
    fashion_files(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:500] if damage == "truncated" else b"<html>")
    with pytest.raises(UserError, match=path.name):
        named_datasets.fashion_mnist(tmp_path, download=False)


def test_three_of_the_four_files_are_not_the_data(tmp_path):
    fashion_files(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="fashion-mnist is not in"):
        named_datasets.fashion_mnist(tmp_path, download=False)


def test_an_idx_file_cut_inside_is_named(tmp_path):
    fashion_files(tmp_path, packed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a whole idx file"):
        named_datasets.fashion_mnist(tmp_path, download=False)


def test_a_folder_of_such_files_is_data_too(tmp_path, monkeypatch):
    """With crops of the images' size and numbers for classes. Who stands in it has not named it."""
    fashion_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert habits_of(None) is None
    args = arguments(str(tmp_path))
    data = load_data(args)
    assert (len(data.train), len(data.val), data.name) == (20, 10, tmp_path.name)
    assert data.train[0][0].shape == (3, 24, 24)
    assert habits_of(str(tmp_path)).crop_size == 28
    assert args.hflip_prob == 0
    assert data.classes == [str(number) for number in range(10)]
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(b"<html>")
    with pytest.raises(UserError, match=f"{packed}: cannot be read"):
        arguments(str(tmp_path))


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"digits"}))
def test_what_is_not_there_is_said_with_the_way_to_get_it(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} is not in {tmp_path}: pass --download"):
        load_data(arguments(name, "--download-dir", str(tmp_path)))


@pytest.fixture
def published(tmp_path):
    """A folder and its address on the loopback."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_fashion_mnist_is_fetched_once_when_allowed(tmp_path, published, monkeypatch):
    folder, address = published
    written = fashion_files(folder)
    sums = [(path.name, md5(path.read_bytes())) for path in sorted(folder.iterdir())]
    monkeypatch.setattr(FashionMNIST, "mirrors", [address])
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    data = named_datasets.fashion_mnist(tmp_path / "down", download=True)
    assert np.array_equal(data.val.images[:, 0].numpy(), written["t10k-images-idx3-ubyte"])
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    assert len(named_datasets.fashion_mnist(tmp_path / "down", download=True).train.images) == FASHION["train"]


def publish_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR-10's archive in small: its six batches with two images each, and torchvision's sums made to fit."""
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    contents = {"batches.meta": {"label_names": [f"class {number}" for number in range(10)]}}
    for number, (name, _) in enumerate(CIFAR10.train_list + CIFAR10.test_list):
        part = slice(2 * number, 2 * number + 2)
        contents[name] = {"data": images[part].reshape(2, -1), "labels": [number, number + 1]}
    packed = {name: pickle.dumps(content) for name, content in contents.items()}
    with tarfile.open(folder / CIFAR10.filename, "w:gz") as archive:
        for name, content in packed.items():
            entry = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    for parts in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, parts, [[name, md5(packed[name])] for name, _ in getattr(CIFAR10, parts)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(packed["batches.meta"])})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5((folder / CIFAR10.filename).read_bytes()))
    return images


def test_cifar_is_fetched_when_allowed_and_found_again(tmp_path, published, monkeypatch):
    folder, address = published
    images = publish_cifar(folder, monkeypatch)
    monkeypatch.setattr(CIFAR10, "url", address + CIFAR10.filename)
    place = ["--download-dir", str(tmp_path / "down")]
    assert len(load_data(arguments("cifar10", *place, "--download")).train) == 10
    data = load_data(arguments("cifar10", *place))
    assert np.array_equal(data.train.rows.numpy(), images[:10])
    assert data.val.targets.tolist() == [5, 6]
    assert data.classes[3] == "class 3"
    (tmp_path / "down" / CIFAR10.base_folder / "test_batch").write_bytes(b"not what was published")
    with pytest.raises(UserError, match="cifar10 is not in"):
        load_data(arguments("cifar10", *place))


def test_a_download_that_fails_says_so_in_one_line(tmp_path, published, monkeypatch):
    monkeypatch.setattr(FashionMNIST, "mirrors", [published[1]])
    monkeypatch.setattr(CIFAR10, "url", published[1] + "elsewhere.tar.gz")
    for name, kind in (("fashion-mnist", FashionMNIST), ("cifar10", CIFAR10)):
        with pytest.raises(UserError, match=f"{kind.__name__} cannot be fetched into .*404") as caught:
            load_data(arguments(name, "--download", "--download-dir", str(tmp_path)))
        assert "\n" not in str(caught.value)
