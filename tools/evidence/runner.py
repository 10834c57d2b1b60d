"""Runs the runs: several at a time if asked to, until all are finished or the time is over. Each has its folder.

A finished run left `result.json` there and is not touched again; any other goes on from its newest checkpoint.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.evidence.grid import Run
from utils.files import whole_file

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "train_adn.py"
RESULT, TIMES, LOG = "result.json", "times.jsonl", "log.txt"


class Failed(Exception):
    """A command of a run ended with an error; the message says where to look."""


@dataclass
class Executor:
    """Where and how runs are executed."""

    folder: Path  # of the grid; each run has one below it
    jobs: int
    extra: Sequence[str] = ()  # arguments for every command that change no result: where data lies, --device
    deadline: float = float("inf")  # of time.monotonic
    stopped: bool = False
    asked: bool = False
    active: dict[int, "Active"] = field(default_factory=dict)

    def execute(self, runs: Sequence[Run]) -> bool:
        """False if stopped, by the deadline or a signal, before all were finished."""
        waiting = [run for run in runs if not finished(self.folder, run)]
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while (waiting and not self._over()) or self.active:
                while waiting and len(self.active) < self.jobs and not self._over():
                    run = waiting.pop(0)
                    self._next(run, commands(self.folder, run, self.extra))
                self._collect()
        finally:
            self._ask_to_stop()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return all(finished(self.folder, run) for run in runs)

    def _over(self) -> bool:
        return self.stopped or time.monotonic() > self.deadline

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def _next(self, run: Run, steps: Iterator[list[str]]) -> None:
        """Start the run's next command, or note that it has none left."""
        command = next(steps, None)
        if command is None:
            finish(self.folder, run)
            print(f"finished  {run.name}", flush=True)
            return
        place = self.folder / run.name
        place.mkdir(parents=True, exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        with open(place / LOG, "a") as log:
            child = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
            )
        self.active[child.pid] = Active(run, steps, "--test-only" in command, time.monotonic())

    def _collect(self) -> None:
        """Look which commands have ended; ask all others to stop, once, when the time is over."""
        if self._over() and not self.asked:
            self.asked = True
            self._ask_to_stop()
        for pid in list(self.active):
            done, status, usage = os.wait4(pid, os.WNOHANG)  # tells the processor time of this one child
            if done:
                self._ended(pid, os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime)
        time.sleep(0.1)

    def _ask_to_stop(self) -> None:
        for pid in self.active:
            os.kill(pid, signal.SIGTERM)

    def _ended(self, pid: int, code: int, cpu_seconds: float) -> None:
        this = self.active.pop(pid)
        place = self.folder / this.run.name
        took = {"testing": this.testing, "wall": time.monotonic() - this.start, "cpu": cpu_seconds, "code": code}
        with open(place / TIMES, "a") as file:
            file.write(json.dumps(took) + "\n")
        if code == 0 and not self._over():
            self._next(this.run, this.left)
        elif code != 0 and not self._over():
            raise Failed(f"{this.run.name}: a command ended with exit code {code}; see {place / LOG}")


@dataclass(frozen=True)
class Active:
    """A command that runs now, and those that its run has left."""

    run: Run
    left: Iterator[list[str]]
    testing: bool
    start: float


def finished(folder: Path, run: Run) -> bool:
    return (folder / run.name / RESULT).exists()


def commands(folder: Path, run: Run, extra: Sequence[str]) -> Iterator[list[str]]:
    """The commands of a run that are still to do."""
    place = folder / run.name
    shared = [*extra, "--output-dir", str(place)]
    yield [sys.executable, str(COMMAND), *run.training, *shared, "--resume", "auto"]
    yield [sys.executable, str(COMMAND), *run.testing, *shared, "--weights", str(place / "checkpoint.pth")]


def finish(folder: Path, run: Run) -> None:
    """Write the run's result, and remove its checkpoints, which together would fill a disk."""
    place = folder / run.name
    with whole_file(place / RESULT) as file:
        file.write(json.dumps(result(place, run), indent=1).encode())
    for path in place.glob("*.pth"):
        path.unlink()


def result(place: Path, run: Run) -> dict[str, Any]:
    """What a run came to, without a word about where on this machine it was."""
    about = json.loads((place / "run.json").read_text())
    times = _lines(place / TIMES)
    rows = json.loads((place / "subnets.json").read_text())["subnets"]
    return {
        "setting": run.setting.name,
        "method": run.method,
        "seed": run.seed,
        "command": " ".join(["python train_adn.py", *run.training]),
        "epochs": about["args"]["epochs"],
        "subnets": {
            row["name"]: {"top1": row["top1"], "gmacs": row["gmacs"]} for row in rows if run.counts(row["name"])
        },
        "seconds": {what: sum(t[what] for t in times if not t["testing"]) for what in ("wall", "cpu")},
        "seconds_testing": {what: sum(t[what] for t in times if t["testing"]) for what in ("wall", "cpu")},
        "versions": about["versions"],
        "device": about["args"]["device"],
        "machine": machine(about["device"]),
        "precision": "bf16 or fp16" if about["args"]["amp"] else "fp32",
    }


def machine(device: str) -> str:
    """A class of machines, not one."""
    return f"{platform.machine()}, {os.cpu_count()} cores" if device in ("cpu", platform.processor()) else device


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
