"""Runs of the command that are really killed and continued, and what they must end with: the same, to the last bit."""

import contextlib
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import train_adn
from tests.launch import ENVIRONMENT, ROOT, command, launch, parting, together

FLAGS = (
    "--model mobilenet_v2_small --train-crop-size 32 --val-resize-size 32 --val-crop-size 32 --epochs 2 "
    "--lr 0.05 --label-smoothing 0.1 --mixup-alpha 0.2 --cutmix-alpha 1.0 --auto-augment ta_wide --random-erase 0.5 "
    "--ra-sampler --ra-reps 2 --model-ema --model-ema-steps 2 --clip-grad-norm 1 --lr-scheduler cosineannealinglr "
    "--checkpoint-steps 1 --print-freq 1"
)
BATCH = 4  # of all processes
STEPS = 12  # of the whole run


def start(line: list[str], folder: Path, env: dict = ENVIRONMENT) -> subprocess.Popen:
    """Begin a run in a session of its own; what it says is in the folder."""
    folder.mkdir(exist_ok=True)
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(line, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True)


class Command:
    """The command on the same data with the same flags, in so many processes."""

    def __init__(self, data: Path, processes: int, *more: str) -> None:
        self.processes = processes
        self.line = ["train_adn.py", *FLAGS.split(), "--data-path", data, "--batch-size", BATCH // processes, *more]

    def whole(self, folder: Path, *more: str, env: dict | None = None) -> str:
        """Run it to its end; what it said. One process that needs no environment of its own is this one."""
        line = [*self.line, "--output-dir", folder, "--workers", "0", *more]
        if self.processes == 1 and env is None:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert train_adn.main(list(map(str, line[1:]))) == 0
            return said.getvalue()
        done = launch(*line, env=env) if self.processes == 1 else together(*line, processes=self.processes)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(
        self, folder: Path, *more: str, torchrun: Sequence[str] = (), env: dict = ENVIRONMENT
    ) -> subprocess.Popen:
        """In the background; several processes by torchrun if flags are given for it."""
        line = [*self.line, "--output-dir", folder, *more]
        if self.processes == 1:
            return start(command(*line), folder, env)
        if not torchrun:
            return start(parting(*line, processes=self.processes, meeting=folder.with_suffix(".meeting")), folder, env)
        line = command(*line, processes=self.processes)
        line[(place := line.index("--standalone")) : place] = torchrun
        return start(line, folder, env)


def metrics(folder: Path) -> list[dict]:
    """The lines of a run's log; nan is no JSON."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def steps_done(folder: Path) -> int:
    """Also while it runs: its last line may be half written."""
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
    logs = [metrics(folder) for folder in (whole, broken)]
    for line in [*logs[0], *logs[1]]:
        for name in ("run", "time", "seconds", "images_per_second"):
            line.pop(name, None)
    assert logs[0] == logs[1]
    assert steps_done(whole) == STEPS
