"""A run that is killed and continued ends with the weights of one that was not, to the last bit."""

import copy
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

import models
import train_adn
from tests.launch import ENVIRONMENT, ROOT, command, launch, together
from tests.pictures import image_folder
from utils.train import engine
from utils.train import run as training

FLAGS = (
    "--model mobilenet_v2 --train-crop-size 32 --val-resize-size 32 --val-crop-size 32 --epochs 2 "
    "--lr 0.05 --label-smoothing 0.1 --mixup-alpha 0.2 --cutmix-alpha 1.0 --auto-augment ta_wide --random-erase 0.5 "
    "--ra-sampler --ra-reps 2 --model-ema --model-ema-steps 2 --clip-grad-norm 1 --lr-scheduler cosineannealinglr "
    "--checkpoint-steps 1 --print-freq 1"
)
BATCH = 4  # of all processes
STEPS = 12  # of the whole run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data"), train=12, val=3)


class Command:
    """The command on the same data with the same flags, in so many processes."""

    def __init__(self, data: Path, processes: int, *more: str) -> None:
        self.processes = processes
        self.line = ["train_adn.py", *FLAGS.split(), "--data-path", data, "--batch-size", BATCH // processes, *more]

    def whole(self, folder: Path, *more: str, env: dict = ENVIRONMENT) -> str:
        """Run it to its end; what it said."""
        line = (*self.line, "--output-dir", folder, "--workers", "0", *more)
        done = launch(*line, env=env) if self.processes == 1 else together(*line, processes=self.processes, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, folder: Path, *more: str, launcher: Sequence[str] = (), env: dict = ENVIRONMENT):
        line = command(*self.line, "--output-dir", folder, *more, processes=self.processes)
        if launcher:
            place = line.index("--standalone")
            line[place:place] = launcher
        folder.mkdir(exist_ok=True)
        with open(folder / "output.txt", "a") as output:
            return subprocess.Popen(line, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True)


def steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count('"event": "step"') if path.exists() else 0


def wait_for_steps(process: subprocess.Popen, folder: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while steps_done(folder) < count and process.poll() is None:
        assert time.monotonic() < deadline, (folder / "output.txt").read_text()
        time.sleep(0.01)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher and everything below it, which torchrun puts into sessions of their own."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listing.splitlines()[1:])
    family = {process.pid}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def content(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pth", weights_only=False)


def assert_same(one: object, other: object, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert one == other, where


def assert_same_run(whole: Path, broken: Path) -> None:
    """The same state at the end, and the same log: nothing is missing, and nothing is in it twice."""
    expected, found = content(whole), content(broken)
    for key in ("model", "model_ema", "optimizer", "lr_scheduler", "progress"):
        assert_same(expected[key], found[key], key)
    logs = [list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())) for folder in (whole, broken)]
    for line in [*logs[0], *logs[1]]:
        for name in ("run", "time", "seconds", "images_per_second"):
            line.pop(name, None)
    assert logs[0] == logs[1]
    assert steps_done(whole) == STEPS


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
    launcher = two.start(broken, "--workers", "0", launcher=["--max-restarts=1"])
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
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["epoch"], line["step"]) for line in lines] == [
        *(("step", 1, 3), ("step", 1, 4), ("epoch", 1, 4))
    ]
    assert content(tmp_path)["model_ema"]["n_averaged"] == 8
