"""A run that is killed and continued ends with the weights of one that was not, to the last bit."""

import copy
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import models
import train_adn
from tests.launch import ROOT
from tests.pictures import image_folder
from tests.runs import (
    BATCH,
    STEPS,
    Command,
    assert_same,
    assert_same_run,
    content,
    kill_all,
    metrics,
    steps_done,
    wait_for_steps,
)
from utils.train import engine
from utils.train import run as training


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data"), train=12, val=3)


@pytest.mark.usefixtures("one_thread")
def test_stopped_killed_and_continued_a_run_ends_with_the_same_bits(data, tmp_path):
    one, broken = Command(data, 1), tmp_path / "broken"
    one.whole(tmp_path / "whole")
    choose = random.Random(1)
    process = one.start(broken, "--resume", "auto", "--workers", "2")
    wait_for_steps(process, broken, choose.randint(1, 4))
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=100) == 75
    output = (broken / "output.txt").read_text()
    assert "Stopped by a signal, saved" in output, output
    assert "Traceback" not in output
    saved = content(broken)["progress"]
    assert 0 < saved["step"] < STEPS / 2
    assert saved["samples"] == saved["step"] * BATCH
    process = one.start(broken, "--resume", "auto", "--workers", "1")
    wait_for_steps(process, broken, steps_done(broken) + choose.randint(1, 3))
    time.sleep(choose.random() * 0.2)
    kill_all(process)
    assert "Resumed" in one.whole(broken, "--resume", "auto")
    assert_same_run(tmp_path / "whole", broken)


def test_a_lost_process_and_ctrl_c_leave_the_bits_of_two_processes_alone(data, tmp_path):
    """No --resume at first: that torchrun started the run again is enough."""
    two, broken = Command(data, 2, "--model", "resnet20"), tmp_path / "broken"
    two.whole(tmp_path / "whole")
    broken.mkdir()
    leftover = broken / ".checkpoint.pth.1.tmp"  # of a run that was killed while it wrote
    leftover.touch()
    launcher = two.start(broken, "--workers", "0", torchrun=["--max-restarts=1"])
    try:
        wait_for_steps(launcher, broken, 2)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        killed_at = steps_done(broken)
        wait_for_steps(launcher, broken, killed_at + 3)
        os.kill(launcher.pid, signal.SIGINT)
        assert launcher.wait(timeout=100) != 0  # torchrun's own
    finally:
        kill_all(launcher)
    output = (broken / "output.txt").read_text()
    assert "Resumed" in output, output
    assert "Stopped by a signal, saved" in output, output
    assert not leftover.exists()
    saved = content(broken)["progress"]
    assert saved["samples"] == saved["step"] * BATCH
    assert "Resumed" in two.whole(broken, "--resume", "auto")
    assert_same_run(tmp_path / "whole", broken)


def test_what_an_average_teaches_on_two_processes_goes_on_from_an_epochs_end(data, tmp_path):
    """Of the processes' own running statistics, of which the average's are made, a checkpoint has the main one's."""
    two = Command(data, 2, "--model", "resnet20", "--method", "drawn", "--ema-teacher", "--calibrate", "0")
    two.whole(tmp_path / "whole")
    two.whole(tmp_path / "again", "--resume", tmp_path / "whole" / "model_0.pth")
    for key in ("model", "model_ema"):
        assert_same(content(tmp_path / "whole")[key], content(tmp_path / "again")[key], key)


def test_a_checkpoint_from_before_depth_by_selection_goes_on(tmp_path, monkeypatch):
    """Written by that version itself, of a ResNet-20 of a quarter of the width, after the sixth of its eight steps."""
    path = ROOT / "tests/golden/run_before_depth_by_selection.pth"
    flags = (
        "--model resnet20 --data-path digits --train-images 64 --val-images 20 --train-crop-size 16 --epochs 2 "
        "--val-resize-size 16 --val-crop-size 16 --batch-size 16 --lr 0.01 --wd 0.01 --norm-weight-decay 0 --amp "
        "--amp-dtype fp16 --model-ema --model-ema-steps 1 --lr-scheduler cosineannealinglr --print-freq 1 --device cpu "
        "--calibrate 0"
    )
    narrow = partial(models.resnet20, width=4)
    narrow.settings = models.resnet20.settings
    monkeypatch.setitem(models.MODELS, "resnet20", narrow)
    restored: dict[str, object] = {}
    train = training.train

    def look_and_train(run: engine.Run, *rest: object) -> int:
        restored.update(copy.deepcopy(run.state.content()))
        return train(run, *rest)

    monkeypatch.setattr(training, "train", look_and_train)
    assert train_adn.main([*flags.split(), "--resume", str(path), "--output-dir", str(tmp_path)]) == 0
    old = torch.load(path, weights_only=False)
    old["progress"]["corrupt"] = []  # that version only counted them
    for key in ("model", "optimizer", "lr_scheduler", "epoch", "progress", "classes", "model_ema", "scaler"):
        assert_same(old[key], restored[key], key)
    assert old["scaler"]["_growth_tracker"] == old["model_ema"]["n_averaged"] == 6
    assert [(line["event"], line["epoch"], line["step"]) for line in metrics(tmp_path)] == [
        *(("step", 1, 3), ("step", 1, 4), ("epoch", 1, 4))
    ]
    assert content(tmp_path)["model_ema"]["n_averaged"] == 8
