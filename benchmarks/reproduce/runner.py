"""Runs the runs of a grid, several at a time, until all are finished or the time is over. Each has its own folder.

A finished run left `result.json` there and is not touched again; any other goes on from its newest checkpoint.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.reproduce.grids import Run
from utils.errors import UserError
from utils.files import whole_file

COMMAND = Path(__file__).resolve().parents[2] / "train_adn.py"
RESULT, TIMES, LOG = "result.json", "times.jsonl", "log.txt"


@dataclass
class Runner:
    """Where and how runs are executed."""

    folder: Path  # of the grid; each run has one below it
    jobs: int = 1
    extra: Sequence[str] = ()  # for every command; changes no result: --device, where data lies
    stopped: bool = False
    active: set[int] = field(default_factory=set)  # processes

    def execute(self, runs: Sequence[Run]) -> bool:
        """False if stopped before all were finished."""
        with ThreadPoolExecutor(self.jobs) as threads:
            mistakes = [mistake for mistake in threads.map(self.run, runs) if mistake]
        if mistakes:
            raise UserError(mistakes[0])
        return all(self.finished(run) for run in runs)

    def finished(self, run: Run) -> bool:
        return (self.folder / run.name / RESULT).exists()

    def stop(self, *_: object) -> None:
        """Start nothing more; what runs saves its checkpoint and ends."""
        self.stopped = True
        for pid in list(self.active):
            os.kill(pid, signal.SIGTERM)

    def run(self, run: Run) -> str | None:
        """Training, test, result, or the part that is missing of these. Returns a mistake, which stops all."""
        place = self.folder / run.name
        for testing in (False, True):
            if self.stopped or self.finished(run):
                return None
            code = self.command(place, run, testing)
            if code != 0 and not self.stopped:
                self.stop()
                return f"{run.name}: a command ended with exit code {code}; see {place / LOG}"
        if code == 0:
            with whole_file(place / RESULT) as file:
                file.write(json.dumps(result(place, run), indent=1).encode())
            for path in place.glob("*.pth"):  # together they would fill a disk
                path.unlink()
        return None

    def command(self, place: Path, run: Run, testing: bool) -> int:
        place.mkdir(parents=True, exist_ok=True)
        own = ["--weights", f"{place}/checkpoint.pth"] if testing else ["--resume", "auto"]
        command = [sys.executable, str(COMMAND), *run.flags(testing), *self.extra, "--output-dir", str(place), *own]
        env = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs))}
        start = time.monotonic()
        with open(place / LOG, "a") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        self.active.add(child.pid)
        _, status, usage = os.wait4(child.pid, 0)  # tells the processor time of this one child
        self.active.remove(child.pid)
        child.returncode = os.waitstatus_to_exitcode(status)
        with open(place / TIMES, "a") as file:
            took = {"wall": time.monotonic() - start, "cpu": usage.ru_utime + usage.ru_stime}
            file.write(json.dumps({"testing": testing, **took}) + "\n")
        return child.returncode


def result(place: Path, run: Run) -> dict[str, Any]:
    """What a run came to, without a word about where on this machine it was."""
    about = json.loads((place / "run.json").read_text())
    rows = json.loads((place / "subnets.json").read_text())["subnets"]
    times = [json.loads(line) for line in (place / TIMES).read_text().splitlines()]
    cpu = about["args"]["device"] == "cpu"
    return {
        "setting": run.setting.name,
        "method": run.method,
        "seed": run.seed,
        "command": " ".join(["python train_adn.py", *run.flags(testing=False)]),
        "subnets": {row["name"]: {"top1": row["top1"], "gmacs": row["gmacs"]} for row in rows},
        "seconds": {what: sum(t[what] for t in times if not t["testing"]) for what in ("wall", "cpu")},
        "versions": about["versions"],
        "device": about["args"]["device"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores" if cpu else about["device"],
    }
