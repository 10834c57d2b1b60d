"""Widths through the command: training, going on, tables, calibration, prediction, and mistakes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import models
import train_adn
from deploy import export
from tests.conftest import Run
from tests.pictures import scene
from tests.runs import assert_same, content, metrics
from utils.train import folder

SIZES = "--train-crop-size 16 --val-resize-size 16 --val-crop-size 16"
DATA = f"--data-path digits --train-images 24 --val-images 10 --batch-size 8 --workers 0 {SIZES}"
TRAIN = f"{DATA} --epochs 2 --lr 0.05 --opt sgd_nesterov --norm-weight-decay 0 --print-freq 1 --checkpoint-steps 1"
US = f"{TRAIN} --model us_mobilenet_v2_small --method sandwich --sandwich 3 --calibrate 0"
US += " --model-ema --model-ema-steps 1 --amp --amp-dtype bf16 --depthwise-weight-decay 0"
S = f"{TRAIN} --model s_mobilenet_v2_small --method slimmable --in-place-distillation --calibrate 1"


@pytest.fixture
def train(run: Run) -> Run:
    return lambda flags, *more: run(train_adn.main, *flags.split(), *more)


@pytest.fixture(scope="module")
def ranged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, and in `killed` what it had written when it was in the second epoch."""
    place, save = tmp_path_factory.mktemp("us"), folder.save

    def save_and_copy(where: Path, content: dict) -> None:
        save(where, content)
        if (content["progress"]["epoch"], content["progress"]["step"]) == (1, 1):
            (place / "killed").mkdir()
            shutil.copy(where / "checkpoint.pth", place / "killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "save", save_and_copy)
        assert train_adn.main([*US.split(), "--output-dir", str(place)]) == 0
    return place


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("s")
    assert train_adn.main([*S.split(), "--output-dir", str(place)]) == 0
    return place


def test_a_run_goes_on_to_the_same_bits(ranged: Path, train: Run) -> None:
    """The widths drawn in its later steps are those that the uninterrupted run drew."""
    code, said, stderr = train(US, "--resume", "auto", "--output-dir", ranged / "killed")
    assert code == 0, stderr
    assert "epoch 1, step 1" in said
    whole, resumed = content(ranged), content(ranged / "killed")
    for key in ("model", "model_ema"):
        assert_same(whole[key], resumed[key], key)
    assert whole["trained"] == ["1.0", "0.35"]
    assert whole["model"]["features.0.1.bn.26.num_batches_tracked"] == 6
    assert whole["model"]["features.0.1.bn.13.num_batches_tracked"] == 0
    losses = [key for key in metrics(ranged)[0] if key.startswith("loss_")]
    assert losses == ["loss_largest", "loss_smallest", "loss_drawn1"]


def test_the_table_has_all_widths_by_cost(listed: Path, train: Run, tmp_path: Path) -> None:
    weights = ("--weights", listed / "checkpoint.pth", "--output-dir", tmp_path)
    code, said, stderr = train(f"--test-only --widths all --budget-gmacs 0.0005 --latency-batch 0 {DATA}", *weights)
    assert code == 0, stderr
    rows = json.loads((tmp_path / "subnets.json").read_text())
    assert "each sub-network's own" in json.dumps(rows)
    assert [row["name"] for row in rows["subnets"]] == ["0.35", "0.5", "0.75", "1.0"]
    assert (tmp_path / "subnets.csv").exists()
    assert "0.35" in said.splitlines()[-1]


def test_a_width_between_is_calibrated_kept_and_used(ranged: Path, train: Run, tmp_path: Path) -> None:
    weights, out = ("--weights", ranged / "checkpoint.pth", "--output-dir", tmp_path), tmp_path / "calibrated.pth"
    code, _, stderr = train(f"--test-only --widths 0.37 {DATA}", *weights)
    assert (code, stderr.count("\n")) == (2, 1)
    assert "width 0.37 has no running statistics of its own: calibrate it first, by --calibrate N" in stderr
    code, said, stderr = train(f"--test-only --widths 0.37 --calibrate 1 --weights-out {out} {DATA}", *weights)
    assert code == 0, stderr
    assert train(f"--test-only --widths 0.37 {DATA} --weights {out} --output-dir {tmp_path}")[0] == 0
    assert "0.37" in models.read_checkpoint(out)["statistics"]["model"]
    picture = tmp_path / "picture.png"
    scene().save(picture)
    code, said, stderr = train(f"--weights {out} --widths 0.37 --predict {picture}")
    assert code == 0, stderr
    assert "0.37" in said


def test_a_width_is_exported_by_itself(listed: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """What is written has run in torch and given the same logits."""
    line = ["--weights", str(listed / "best.pth"), "--format", "torch", "-o", str(tmp_path / "narrow.pt2")]
    assert export.main([*line, "--skip-cfg", "0.35"]) == 0
    written = torch.export.load(tmp_path / "narrow.pt2").parameters()
    cost = models.network(models.read_weights(listed / "best.pth")).cost(0.35)
    assert sum(parameter.numel() for parameter in written) == cost.parameters
    assert export.main([*line, "--skip-cfg", "all"]) == 2
    assert "one file of many is for depths: name one of s_mobilenet_v2_small's sub-networks" in capfd.readouterr().err


def test_a_bad_width_is_one_line(ranged: Path, mistake: Callable[..., str], tmp_path: Path) -> None:
    test = f"--test-only --widths 1.1 {DATA} --output-dir {tmp_path} --weights {ranged / 'best.pth'}"
    said = mistake(train_adn.main, *test.split())
    assert "1.1 is no width of this network; it has all from 0.35 to 1.0" in said
