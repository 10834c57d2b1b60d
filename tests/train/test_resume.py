"""A run that is killed and continued ends with the weights of one that was not, to the last bit."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.launch import ENVIRONMENT, ROOT, command, launch
from tests.pictures import image_folder

FLAGS = (
    "--model mobilenet_v2 --train-crop-size 32 --val-resize-size 32 --val-crop-size 32 --batch-size 4 --epochs 2 "
    "--lr 0.05 --label-smoothing 0.1 --mixup-alpha 0.2 --cutmix-alpha 1.0 --auto-augment ta_wide --random-erase 0.5 "
    "--ra-sampler --ra-reps 2 --model-ema --model-ema-steps 2 --clip-grad-norm 1 --lr-scheduler cosineannealinglr "
    "--checkpoint-steps 1 --print-freq 1 --resume auto"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data"), train=12, val=3)


def arguments(data: Path, folder: Path, workers: int) -> list[object]:
    return ["train_adn.py", *FLAGS.split(), "--data-path", data, "--output-dir", folder, "--workers", workers]


def start(data: Path, folder: Path, processes: int, workers: int) -> subprocess.Popen:
    line = command(*arguments(data, folder, workers), processes=processes)
    folder.mkdir(exist_ok=True)
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output, start_new_session=True)


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


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_steps_and_resumed(data, tmp_path, processes):
    whole = launch(*arguments(data, tmp_path / "whole", workers=0), processes=processes)
    assert whole.returncode == 0, whole.stderr
    steps = steps_done(tmp_path / "whole")
    assert steps == 2 * 6 // processes
    broken = tmp_path / "broken"
    choose = random.Random(processes)
    for workers in (2, 1):
        process = start(data, broken, processes, workers)
        # A killed run has written a step's line before its checkpoint: some steps are done twice.
        wait_for_steps(process, broken, steps_done(broken) + choose.randint(1, steps // 2 - 1))
        time.sleep(choose.random() * 0.2)
        kill_all(process)
    last = launch(*arguments(data, broken, workers=0), processes=processes)
    assert last.returncode == 0, last.stderr
    assert "Resumed" in last.stdout
    expected, found = content(tmp_path / "whole"), content(broken)
    for key in ("model", "model_ema", "optimizer", "lr_scheduler", "progress"):
        assert_same(expected[key], found[key], key)
    lines = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    final = [line for line in lines if line["event"] == "epoch"][-1]
    reference = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()][-1]
    assert final == reference


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_finishes_the_step_saves_and_exits_with_75(data, tmp_path, processes, number):
    process = start(data, tmp_path / "run", processes, workers=1)
    wait_for_steps(process, tmp_path / "run", 2)
    os.kill(process.pid, number)
    code = process.wait(timeout=100)
    output = (tmp_path / "run/output.txt").read_text()
    assert "Stopped by a signal, saved" in output, output
    if processes == 1:
        assert code == 75
        assert "Traceback" not in output
    else:
        assert code != 0  # torchrun's own
    saved = content(tmp_path / "run")["progress"]
    assert (saved["epoch"], saved["step"]) >= (0, 2)
    assert saved["samples"] == saved["step"] * 4 * processes


def test_torchrun_starts_a_run_again_that_lost_a_process(data, tmp_path):
    """No --resume: that the launcher started it again is enough."""
    flags = [flag for flag in arguments(data, tmp_path, 0) if flag not in ("--resume", "auto")]
    line = command(*flags, processes=2)
    line.insert(line.index("--standalone"), "--max-restarts=1")
    leftover = tmp_path / ".checkpoint.pth.1.tmp"  # of a run that was killed while it wrote
    leftover.touch()
    with open(tmp_path / "output.txt", "w") as output:
        launcher = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "checkpoint.pth").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert launcher.wait(timeout=200) == 0
    finally:
        launcher.kill()
    assert not leftover.exists()
    said = (tmp_path / "output.txt").read_text()
    assert "Resumed" in said
    assert "Done:" in said
