"""The scan of a folder agrees with torchvision's, and what is kept of it is never believed too long."""

import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from tests.pictures import image_folder, jpeg, scene
from utils.data import folders
from utils.data.folders import list_images
from utils.errors import UserError


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return image_folder(tmp_path / "pets", train=3, val=1) / "train"


def kept(tmp_path):
    return list((tmp_path / "cache").rglob("files-*"))


def test_order_and_classes_are_torchvisions(train):
    (train / "cat" / "more" / "deep").mkdir(parents=True)
    for name in ("cat/more/b.PNG", "cat/more/deep/a.jpeg", "dog/Zoë.jpg", "dog/.hidden.jpg", "dog/note.txt"):
        (train / name).write_bytes(jpeg(scene()))
    listed, theirs = list_images(train), ImageFolder(train)
    assert listed.classes == theirs.classes
    paths = [(os.path.join(train, os.fsdecode(f)), t) for f, t in zip(listed.files, listed.targets, strict=True)]
    assert paths == theirs.samples
    assert listed.files.dtype.kind == "S"


def test_links_are_followed(train, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "new.jpg").write_bytes(jpeg(scene()))
    (train / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    assert os.fsdecode(list_images(train).files[3]) == "cat/more/new.jpg"


LOOPS = {"to itself": {"cat/again": "."}, "up": {"cat/up": ".."}, "a class": {"all": "."}}
LOOPS["to each other"] = {"cat/dog": "../dog", "dog/cat": "../cat"}  # each holds the other's images, once


@pytest.mark.parametrize("links", LOOPS.values(), ids=LOOPS)
def test_links_that_lead_back_are_not(train, links):
    before = list_images(train)
    for place, target in links.items():
        (train / place).symlink_to(target)
    after = list_images(train)
    assert after.classes == before.classes
    assert len(after.files) == len(before.files) * len(links)


def test_a_class_folder_without_images_is_named(train):
    (train / "ant").mkdir()
    (train / "ant" / "readme.txt").write_text("soon")
    with pytest.raises(UserError, match=r"train/ant: a class folder without images .*fill it or remove it"):
        list_images(train)


@contextlib.contextmanager
def as_nobody():
    """Root reads everything: step down while the test asks."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_without_permission_is_named():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        train = image_folder(Path(folder, "pets"), train=1, val=1) / "train"
        (train / "cat").chmod(0)
        with as_nobody(), pytest.raises(UserError, match="train/cat: Permission denied; check"):
            list_images(train)


def test_a_folder_that_cannot_be_entered_is_named(train):
    (train / "eel").symlink_to("eel")
    with pytest.raises(UserError, match="train/eel: Too many levels"):
        list_images(train)


def test_the_cache_is_used_while_it_is_true(train, tmp_path, monkeypatch):
    first = list_images(train, cache=True)
    assert len(kept(tmp_path)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(folders, "_scan", lambda folder: pytest.fail("scanned again"))
        again = list_images(train, cache=True)
    assert again.classes == first.classes
    assert np.array_equal(again.files, first.files)
    assert np.array_equal(again.targets, first.targets)


@pytest.mark.parametrize("change", ["add", "remove", "class"])
def test_a_changed_folder_is_scanned_again(train, change):
    before = list_images(train, cache=True)
    if change == "add":
        (train / "cat" / "new.jpg").write_bytes(jpeg(scene()))
    elif change == "remove":
        (train / "cat" / "0.JPEG").unlink()
    else:
        (train / "dog").rename(train / "wolf")
    after = list_images(train, cache=True)
    assert after.classes != before.classes or len(after.files) != len(before.files)
    assert np.array_equal(after.files, list_images(train).files)


@pytest.mark.parametrize("damage", ["empty", "half", "pickle"])
def test_a_damaged_cache_is_replaced(train, tmp_path, damage):
    expected = list_images(train, cache=True)
    [path] = kept(tmp_path)
    whole = path.read_bytes()
    if damage == "pickle":
        np.savez(path, stamp=np.array([{"a": 1}], dtype=object))
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"")
    assert np.array_equal(list_images(train, cache=True).files, expected.files)
    assert [other.read_bytes() for other in kept(tmp_path)] == [whole]


def test_a_cache_that_cannot_be_written_is_a_warning(train, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert list_images(train, cache=True).classes == ["cat", "dog"]
    assert "going on without" in caplog.text
