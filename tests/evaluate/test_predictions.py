"""Accuracies and `--save-predictions`: what one process and several find is what the network says, image by image."""

import contextlib
import csv
import importlib.util
import re
import sys

import numpy as np
import PIL.Image
import pytest
import torch

import models
import presets
import train_adn
from tests.filled import filled
from tests.launch import together
from tests.pictures import bad_images, image_folder

NAMES = ["TTT", "FFF", "TFT"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of 3 x 4 images, of which one is unreadable, and weights; do not write there."""
    folder = image_folder(tmp_path_factory.mktemp("data") / "pets", train=1, val=4, classes=("ant", "bee", "$cow"))
    bad = bad_images(folder / "bad")["truncated"]
    bad.rename(folder / "val" / "bee" / "1.JPEG")
    torch.save(filled(models.resnet20(num_classes=3).state_dict()), folder / "weights.pth")
    return folder


def flags(pets, output) -> list[str]:
    words = f"--test-only --device cpu --model resnet20 --data-path {pets} --weights {pets / 'weights.pth'} --workers 1"
    words += " --val-resize-size 20 --val-crop-size 16 --batch-size 3 --on-corrupt skip --latency-batch 0 --output-dir"
    return [*words.split(), str(output), "--save-predictions", "--skip-cfg", *NAMES]


@pytest.fixture(scope="module")
def alone(pets, tmp_path_factory):
    """What one process writes; do not write there."""
    folder = tmp_path_factory.mktemp("alone")
    with open(folder / "said.txt", "w") as said, contextlib.redirect_stdout(said):
        assert train_adn.main(flags(pets, folder)) == 0
    return folder


def test_logits_are_the_networks_in_the_order_of_the_data_without_what_cannot_be_read(pets, alone):
    model = models.resnet20(num_classes=3).eval()
    model.load_state_dict(torch.load(pets / "weights.pth"))
    transform, to_float = presets.eval_transform(20, 16), presets.ToFloat()
    with np.load(alone / "predictions.npz") as kept:
        assert set(kept) == {"names", "labels", "classes", *(f"logits_{name}" for name in NAMES)}
        assert kept["classes"].tolist() == ["$cow", "ant", "bee"]
        expected = [f"{name}/{number}.JPEG" for name in kept["classes"] for number in range(4)]
        assert kept["names"].tolist() == [name for name in expected if name != "bee/1.JPEG"]
        assert kept["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 3
        images = [transform(presets.decode_pil(pets / "val" / name)) for name in kept["names"].tolist()]
        with torch.no_grad():
            logits = model.forward_all(to_float(torch.stack(images)), list(map(model.parse, NAMES)))
        for subnet, values in logits.items():
            found = kept[f"logits_{model.name(subnet)}"]
            assert found.dtype == np.float32
            torch.testing.assert_close(torch.from_numpy(found), values, atol=1e-4, rtol=1e-4)


def test_accuracies_of_classes_are_those_of_the_logits(alone):
    with np.load(alone / "predictions.npz") as kept, open(alone / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
        assert [(row["class"], row["images"]) for row in rows] == [("$cow", "4"), ("ant", "4"), ("bee", "3")]
        for name in NAMES:
            right = kept[f"logits_{name}"].argmax(1) == kept["labels"]
            expected = [100 * right[kept["labels"] == number].mean() for number in range(3)]
            assert [float(row[f"Acc@1 {name}"]) for row in rows] == pytest.approx(expected)


def test_several_processes_write_the_same(pets, alone, tmp_path):
    """Three shares that are not alike: one has the image that cannot be read."""
    done = together("train_adn.py", *flags(pets, tmp_path), "--no-picture", processes=3)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^Test: .*", done.stdout, flags=re.MULTILINE)
    assert lines == re.findall(r"^Test: .*", (alone / "said.txt").read_text(), flags=re.MULTILINE)
    assert [line.split()[1] for line in lines] == NAMES
    assert {re.search(r"(\d+) images", line)[1] for line in lines} == {"11"}
    assert "in 3 process(es)" in done.stdout
    tables = ["per_class.csv", "predictions.npz", "subnets.csv", "subnets.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == tables
    with np.load(alone / "predictions.npz") as theirs, np.load(tmp_path / "predictions.npz") as ours:
        for name in set(theirs):
            if name.startswith("logits"):
                np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, rtol=1e-4)
            else:
                assert np.array_equal(ours[name], theirs[name])


def test_the_picture_is_of_the_first_sub_network_where_matplotlib_is(pets, alone, tmp_path, monkeypatch, capsys):
    if importlib.util.find_spec("matplotlib"):
        with PIL.Image.open(alone / "confusion_TTT.png") as image:
            assert image.size == (1050, 900)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    few = [*flags(pets, tmp_path)[:-3], "FFF"]
    assert train_adn.main(few) == 0
    assert "confusion_FFF.png was not drawn: matplotlib is missing" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["per_class.csv", "predictions.npz"]


def test_of_data_in_memory_the_names_are_numbers(tmp_path):
    torch.save(filled(models.resnet20(num_classes=10).state_dict()), tmp_path / "weights.pth")
    few = flags(tmp_path, tmp_path)
    few[few.index("--data-path") + 1] = "digits"
    assert train_adn.main([*few, "--val-images", "7", "--no-picture"]) == 0
    with np.load(tmp_path / "predictions.npz") as kept:
        assert kept["names"].tolist() == list("0123456")
        assert kept["logits_TFT"].shape == (7, 10)
