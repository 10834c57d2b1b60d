"""What a person and a program see of a run: lines or a bar, metrics.jsonl, run.json and, if asked for, TensorBoard."""

import argparse
import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils import processes as distributed
from utils.errors import UserError
from utils.files import whole_file

log = logging.getLogger(__name__)


class _Stdout(logging.Handler):
    """Lines that do not break a bar on the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def setup() -> None:
    """The main process tells what happens on stdout, the others keep to errors."""
    handler = _Stdout()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if distributed.is_main() else logging.ERROR, handlers=[handler], force=True)


def write_run_file(folder: Path, args: argparse.Namespace) -> None:
    """Arguments, versions and git commit, so that a result can be traced to what made it."""
    import torchvision

    content = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "args": {name: value for name, value in vars(args).items() if not name.startswith("_")},
        "processes": distributed.world_size(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": torchvision.__version__,
            "cuda": torch.version.cuda,
        },
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "cpu",
        "git_commit": _git_commit(),
    }
    with whole_file(folder / "run.json") as file:
        file.write(json.dumps(content, indent=2, default=str).encode())


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class Meters:
    """Sums over an epoch, on the device: for each pass its loss and its answers that are right at once or in five.

    Only `values` waits for the device.
    """

    def __init__(self, passes: int, device: torch.device, saved: list | None = None) -> None:
        self.sums = torch.zeros(passes, 4, dtype=torch.float64, device=device)
        if saved:  # by a checkpoint: to each process its own sums, if there are as many as then
            rows = torch.tensor(saved, dtype=torch.float64)
            if len(rows) == distributed.world_size():
                self.sums.copy_(rows[distributed.rank()])
            elif distributed.is_main():
                self.sums.copy_(rows.sum(0))

    @torch.no_grad()
    def add(self, results: Sequence, targets: Tensor) -> None:
        """Count the results of a batch. Soft labels count as their likeliest class."""
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        for row, result in zip(self.sums, results, strict=True):
            hits = result.logits.topk(min(5, result.logits.shape[1]), dim=1).indices == labels[:, None]
            counts = torch.stack([hits[:, 0].sum(), hits.sum()])
            row[0] += result.loss.double() * len(labels)
            row[1:3] += counts
            row[3] += len(labels)

    def values(self) -> Tensor:
        """The sums of every process, on the CPU: processes x passes x (loss, right at once, right in five, images)."""
        return distributed.gather(self.sums).cpu()


def averages(names: Sequence[str], sums: Tensor) -> dict[str, float]:
    """Sums (passes x 4) → loss and accuracies by name."""
    values: dict[str, float] = {}
    for name, (loss, right1, right5, images) in zip(names, sums.tolist(), strict=True):
        count = max(images, 1)
        values[f"loss_{name}"] = loss / count
        values[f"acc1_{name}"] = 100 * right1 / count
        values[f"acc5_{name}"] = 100 * right5 / count
    return values


class Log:
    """The log of a run. Only the main process writes."""

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self.active = distributed.is_main()
        self.path = folder / "metrics.jsonl"
        self.failed = False
        self.board = _tensorboard(folder) if tensorboard and self.active else None
        self.bar: tqdm | None = None

    def start_epoch(self, epoch: int, step: int, steps: int) -> None:
        """The clock starts; a bar opens if a person watches."""
        self.epoch, self.steps = epoch, steps
        self.mark = time.perf_counter(), step, 0
        if self.active and sys.stderr.isatty():
            self.bar = tqdm(total=steps, initial=step, desc=f"Epoch {epoch}", unit="step", dynamic_ncols=True)

    def point(self, step: int, images: int, values: dict[str, float]) -> None:
        """A log point after `step` steps of the epoch and, since `start_epoch`, `images` images of all processes."""
        (then, last_step, last_images), self.mark = self.mark, (time.perf_counter(), step, images)
        seconds = max(self.mark[0] - then, 1e-9)
        eta = (self.steps - step) * seconds / max(step - last_step, 1)
        values = {**values, "images_per_second": (images - last_images) / seconds, **_memory()}
        self.record("step", self.epoch, step, values)
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix_str(_line(values))
        else:
            header = f"Epoch: [{self.epoch}]  [{step}/{self.steps}]  eta: {timedelta(seconds=int(eta))}"
            log.info("%s  %s", header, _line(values))

    def end_epoch(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def record(self, event: str, epoch: int, step: int, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl. That it cannot be written does not end a run."""
        if not self.active:
            return
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps({"event": event, "epoch": epoch, "step": step, **values}) + "\n")
        except OSError as error:
            if not self.failed:
                log.warning("%s: cannot be written (%s); training goes on without it", self.path, error.strerror)
            self.failed = True
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"{event}/{name}", value, epoch * self.steps + step)
            self.board.flush()


def _memory() -> dict[str, int]:
    return {"memory_mb": torch.cuda.max_memory_allocated() >> 20} if torch.cuda.is_initialized() else {}


def _line(values: dict[str, float]) -> str:
    return "  ".join(f"{_SHORT.get(name, name)}: {value:.4g}" for name, value in values.items())


_SHORT = {"images_per_second": "img/s", "memory_mb": "max mem (MB)"}


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs a package that is not here: pip install tensorboard") from None
    return SummaryWriter(folder)
