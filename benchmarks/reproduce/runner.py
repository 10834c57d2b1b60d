"""Runs the runs of a grid, several at a time, until all are finished or somebody says stop. Each has its own folder.

A finished run left `result.json` there and is not touched again; any other goes on from its newest checkpoint.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.reproduce.grids import Purpose, Run
from utils.errors import UserError
from utils.files import whole_file


class Runner:
    """Runs below `folder`, `jobs` at a time; `extra` flags change no result: --device, where data lies.

    Those that are `known`, by name, are done.
    """

    def __init__(
        self, folder: Path, jobs: int = 1, extra: Sequence[str] = (), known: Mapping[str, dict[str, Any]] | None = None
    ) -> None:
        self.folder, self.jobs, self.extra, self.known, self.stopped = folder, jobs, extra, known or {}, False
        self.active: set[int] = set()  # processes

    def execute(self, runs: Sequence[Run]) -> bool:
        """False if stopped before all were finished."""
        begun: dict[Run, Future] = {}
        with ThreadPoolExecutor(self.jobs) as threads:
            for run in runs:
                begun[run] = threads.submit(self.run, run, begun.get(run.before))
        for future in begun.values():
            future.result()
        return all(self.result(run) for run in runs)

    def result(self, run: Run) -> dict[str, Any] | None:
        path = self.folder / run.name / "result.json"
        return json.loads(path.read_text()) if path.exists() else self.known.get(run.name)

    def stop(self, *_: object) -> None:
        """Start nothing more; what runs saves its checkpoint and ends."""
        self.stopped = True
        for pid in list(self.active):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGTERM)

    def run(self, run: Run, before: Future | None = None) -> None:
        """Training, tests, result. If a command fails, all the others stop."""
        if before:
            before.result()
        place = self.folder / run.name
        for purpose in run.purposes:
            if self.stopped or self.result(run):
                return
            if (code := self.command(place, run, purpose)) and not self.stopped:
                self.stop()
                raise UserError(f"{run.name}: a command ended with exit code {code}; see {place / 'log.txt'}")
        if code == 0:
            with whole_file(place / "result.json") as file:
                file.write(json.dumps(self.summary(place, run)).encode())
            for path in set(place.glob("*.pth")) - {place / "checkpoint.pth"}:  # together they would fill a disk
                path.unlink()

    def command(self, place: Path, run: Run, purpose: Purpose) -> int:
        training = purpose == "training"
        output = place if training else place / purpose
        output.mkdir(parents=True, exist_ok=True)
        weights = place / "checkpoint.pth"
        if run.before and not weights.exists():
            weights = self.folder / run.before.name / weights.name
        own = ["--resume", "auto"] if training else []
        if run.before or not training:
            own += ["--weights", str(weights)]
        script = Path(__file__).resolve().parents[2] / "train_adn.py"
        command = [sys.executable, str(script), *run.flags(purpose), *self.extra, "--output-dir", str(output), *own]
        env = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs))}
        with open(place / "log.txt", "a") as log:
            start, child = time.monotonic(), subprocess.Popen(command, stdout=log, stderr=log, env=env)
        self.active.add(child.pid)
        if self.stopped:  # while it started
            self.stop()
        _, status, usage = os.wait4(child.pid, 0)  # tells the processor time of this one child
        self.active.remove(child.pid)
        child.returncode = os.waitstatus_to_exitcode(status)
        took = {"testing": not training, "wall": time.monotonic() - start, "cpu": usage.ru_utime + usage.ru_stime}
        with open(place / "times.jsonl", "a") as file:
            file.write(json.dumps(took) + "\n")
        return child.returncode

    def summary(self, place: Path, run: Run) -> dict[str, Any]:
        """What a run came to, without a word about where on this machine it was."""
        trained = place if "training" in run.purposes else self.folder / run.before.name
        about = json.loads((trained / "run.json").read_text())
        raw, calibrated = (
            {row["name"]: row for row in json.loads((place / purpose / "subnets.json").read_text())["subnets"]}
            for purpose in ("raw", "calibrated")
        )
        times = [json.loads(line) for line in (place / "times.jsonl").read_text().splitlines()]
        device = about["device_type"]
        known = {"setting": run.setting.name, "method": run.method, "seed": run.seed}
        return known | {
            "device": device,
            "command": run.command,
            "subnets": {
                name: {"top1": row["top1"], "calibrated": calibrated[name]["top1"], "gmacs": row["gmacs"]}
                for name, row in raw.items()
            },
            "seconds": {what: sum(t[what] for t in times if not t["testing"]) for what in ("wall", "cpu")},
            "versions": about["versions"],
            "machine": f"{platform.machine()}, {os.cpu_count()} cores" if device == "cpu" else about["device"],
        }
