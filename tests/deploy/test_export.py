"""The command: what it writes with torch alone, what it keeps with it, and mistakes in one line with exit code 2."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import models
from deploy import writing
from deploy.export import main
from tests.filled import filled
from tests.launch import ENVIRONMENT, launch

CLASSES = ["left", "right", "straight on"]
HABITS = {"model": "resnet20", "val_crop_size": 28, "val_resize_size": 32, "interpolation": "bicubic"}
LOADS = """
import sys, torch
extra = {"adaptive_depth.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
skips = [False, False, False], [True, False, True]
torch.save([program(torch.ones(3, 3, 28, 28), torch.tensor(skip)) for skip in skips], sys.argv[2])
assert not {"models", "deploy", "torchvision"} & sys.modules.keys()
print(extra["adaptive_depth.json"])
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[models.AdaptiveDepth, Path]:
    """A calibrated network, and a checkpoint as training writes it."""
    model, path = models.build("resnet20", num_classes=3), tmp_path_factory.mktemp("weights") / "best.pth"
    model.load_state_dict(filled(model.state_dict()))
    models.calibrate(model, [torch.rand(8, 3, 28, 28)])
    content = {"model": model.state_dict(), "args": Namespace(**HABITS), "classes": CLASSES, "epoch": 3}
    torch.save({**content, "statistics": {"model": model.statistics()}}, path)
    return model.eval(), path


def test_a_file_for_torch_needs_nothing_of_the_project(
    trained: tuple[models.AdaptiveDepth, Path], tmp_path: Path
) -> None:
    model, weights = trained
    row = {"name": "TFT", "gmacs": 1.0, "params_m": 1.0, "latency_ms": None, "top1": 71.5, "top5": 99.0}
    measured, file = tmp_path / "subnets.json", tmp_path / "new" / "network.pt2"
    measured.write_text(json.dumps({"model": "resnet20", "subnets": [row]}))
    arguments = ["--weights", weights, "--format", "torch", "--table", measured, "-o", file]
    done = launch("-m", "deploy.export", *arguments)
    assert done.returncode == 0, done.stderr
    assert "FFF  largest difference" in done.stdout
    assert list(file.parent.iterdir()) == [file]
    line = [sys.executable, "-c", LOADS, file, tmp_path / "logits.pt"]
    outside = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    found = subprocess.run(list(map(str, line)), capture_output=True, text=True, cwd=tmp_path, env=outside)
    assert found.returncode == 0, found.stderr
    for skip, logits in zip(((False,) * 3, (True, False, True)), torch.load(tmp_path / "logits.pt"), strict=True):
        torch.testing.assert_close(logits, model(torch.ones(3, 3, 28, 28), skip))
    facts = json.loads(found.stdout)
    assert facts["image"]["size"] == 28
    assert (facts["image"]["resize"], facts["image"]["interpolation"]) == (32, "bicubic")
    assert (facts["classes"], facts["calibrated"], facts["batch"]) == (CLASSES, True, "dynamic")
    assert [subnet["top1"] for subnet in facts["subnets"]] == [None] * 5 + [71.5, None, None]
    assert facts["subnets"][5]["skip"] == [True, False, True]
    assert facts["subnets"][0]["gmacs"] == pytest.approx(model.cost(model.super_net, 28).macs / 1e9)
    assert str(tmp_path).encode() not in file.read_bytes()


def test_one_depth_is_exported_for_another_size(
    trained: tuple[models.AdaptiveDepth, Path], tmp_path: Path, capsys
) -> None:
    model, weights = trained
    file, images = tmp_path / "one.pt2", torch.rand(2, 3, 42, 42)
    line = ["--weights", str(weights), "--format", "torch", "--skip-cfg", "TTF", "--image-size", "42", "--batch", "2"]
    assert main([*line, "-o", str(file)]) == 0, capsys.readouterr().err
    extra = {"adaptive_depth.json": ""}
    program = torch.export.load(str(file), extra_files=extra).module()
    torch.testing.assert_close(program(images), model(images, (True, True, False)))
    assert json.loads(extra["adaptive_depth.json"])["image"]["resize"] == 48


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--format onnxx", "did you mean onnx"),
        ("--format torch --skip-cfg TTFF", "3 skippable stages"),
        ("--format torch --batch 0", "at least 1"),
        ("--format executorch --batch dynamic", "give a number"),
        ("--format torch --model resnet18", "is of --model resnet20"),
        ("--format torch --table nothing.json", "--table nothing.json"),
        ("--format torch --stem small", "resnet20"),
        ("--format torch --model-ema", "model_ema"),
        ("--format torch --weights nothing.pth", "no such file"),
        ("--format onnx", "pip install -e '.[onnx]'"),
        ("--format executorch", "pip install -e '.[executorch]'"),
    ],
)
def test_mistakes_are_one_line(
    trained: tuple[models.AdaptiveDepth, Path], tmp_path: Path, monkeypatch, mistake, flags: str, said: str
) -> None:
    missing = ("onnxruntime", "executorch")
    for name in [*missing, *(name for name in sys.modules if name.startswith(tuple(f"{top}." for top in missing)))]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("onnx", "executorch"):
        monkeypatch.delitem(sys.modules, f"deploy.to_{name}", raising=False)
    assert said in mistake(main, "--weights", trained[1], *flags.split(), "-o", tmp_path / "new" / "file")
    assert not (tmp_path / "new").exists()


def test_weights_that_are_not_what_they_say_are_refused(
    trained: tuple[models.AdaptiveDepth, Path], tmp_path: Path, mistake
) -> None:
    content = torch.load(trained[1], weights_only=False)
    of_two, other = tmp_path / "of_two.pth", tmp_path / "other.pth"
    torch.save({**content, "classes": CLASSES[:2]}, of_two)
    torch.save({**content, "model": {"fc.weight": torch.zeros(3, 64)}}, other)
    for file, said in ((of_two, "names 2 classes, but its weights are for 3"), (other, "does not fit")):
        assert said in mistake(main, "--weights", file, "--format", "torch", "-o", tmp_path / "file")


def test_a_gate_is_refused_since_a_file_is_of_one_network(tmp_path: Path, mistake) -> None:
    name = "slimmable_mbnet_v1_small"
    content = {"model": models.build(name, num_classes=2).state_dict()}
    torch.save({**content, "args": Namespace(model=name, val_crop_size=16)}, tmp_path / "weights.pth")
    line = ("--weights", tmp_path / "weights.pth", "--format", "torch", "-o", tmp_path / "file")
    assert "gate: is another network for each image" in mistake(main, *line, "--skip-cfg", "gate")


def test_a_place_that_cannot_be_written_is_refused_and_left_alone(
    trained: tuple[models.AdaptiveDepth, Path], tmp_path: Path, mistake
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    places = [(trained[1] / "file", "cannot be written"), (tmp_path, "it is a folder")]
    if not os.access(closed, os.W_OK):  # root may
        places.append((closed / "file", "Permission denied"))
    for place, said in places:
        assert said in mistake(main, "--weights", trained[1], "--format", "torch", "-o", place)
    assert list(tmp_path.iterdir()) == [closed]


def test_a_file_that_tells_of_this_machine_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\0" + f'File "{Path.cwd()}/deploy/switch.py", line 1'.encode())
    assert writing.leaks(file) == [f"it names {Path.cwd()}"]
