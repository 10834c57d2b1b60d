"""The harder task: its pictures, and that the command takes them."""

from pathlib import Path

import torch

from benchmarks import pairs
from utils.data import named


def test_a_picture_holds_two_garments_and_its_class_says_which(tmp_path: Path, monkeypatch) -> None:
    levels = torch.tensor([100, 150, 200], dtype=torch.uint8)
    images = levels[:, None, None, None].expand(3, 1, 28, 28)
    parts = named.Parts(*[named.Arrays(images, torch.tensor([0, 4, 9]))] * 2, [])
    monkeypatch.setattr(pairs, "fashion_mnist", lambda folder, download: parts)
    assert pairs.main(["-o", str(tmp_path), "--train", "40", "--test", "9"]) == 0
    train, test, classes = named.idx_folder(tmp_path)
    assert (train.images.shape, test.images.shape, len(classes)) == ((40, 1, 36, 36), (9, 1, 36, 36), 100)
    level = {0: 50, 4: 75, 9: 100}
    for picture, target in zip(train.images[:, 0], train.targets.tolist(), strict=True):
        upper, lower = level[target // 10], level[target % 10]
        assert picture[0, 0] == upper
        assert picture[-1, -1] == lower
        assert picture[20, 20] == upper + lower
        assert picture[0, -1] == 0
    assert pairs.main(["-o", str(tmp_path / "halved"), "--train", "40", "--test", "9", "--halve"]) == 0
    halved, _, _ = named.idx_folder(tmp_path / "halved")
    assert torch.equal(halved.images, train.images[..., ::2, ::2])  # of a picture that is flat but for even borders
    assert torch.equal(halved.targets, train.targets)
