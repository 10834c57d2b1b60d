"""What a person and a program see of a run: lines or a bar, metrics.jsonl and, if asked for, TensorBoard."""

import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils import processes
from utils.errors import UserError
from utils.files import as_user_error
from utils.train.folder import METRICS, trim_metrics

log = logging.getLogger(__name__)


class _Stdout(logging.Handler):
    """Lines that do not break a bar on the terminal. That nobody reads them any more (`| head`) ends no run."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def setup() -> None:
    """The main process tells what happens on stdout, the others keep to errors."""
    level = logging.INFO if processes.is_main() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", handlers=[_Stdout()], force=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may know ASCII alone


class Meters:
    """Sums over an epoch, kept on the device: a row for each pass with COLUMNS. Only `values` waits for the device.

    A batch whose loss is not finite is left out of the loss; its images are counted in `not_finite`.
    """

    of_classes = True  # whether there is something to be right about
    COLUMNS = ("loss", "right at once", "right in five", "images", "not_finite")

    def __init__(self, passes: int, device: torch.device, saved: list | None = None) -> None:
        """`saved`: every process's sums by a checkpoint, handed out again if there are as many processes as then."""
        self.sums = torch.zeros(passes, len(self.COLUMNS), dtype=torch.float64, device=device)
        if not saved or len(saved[0]) != passes:  # the run goes on with another method
            return
        rows = torch.tensor(saved, dtype=torch.float64)
        mine = self.sums[:, : rows.shape[2]]  # older checkpoints have no `not_finite`: all their losses were finite
        if len(rows) == processes.world_size():
            mine.copy_(rows[processes.rank()])
        elif processes.is_main():
            mine.copy_(rows.sum(0))

    @torch.no_grad()
    def add(self, results: Sequence, targets: Tensor) -> None:
        """Count the results of a batch."""
        count = len(targets)
        for row, result in zip(self.sums, results, strict=True):
            loss = result.loss
            own = loss.double().nan_to_num(0, 0, 0) / (result.weight or 1)  # without the weight that it has in the step
            row[:3] += torch.stack([own * count, *self.hits(result.logits, targets)])
            row[3] += count
            row[4] += ~loss.isfinite() * count

    def hits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """How many are right at once, and in five. Soft labels count as their likeliest class."""
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        hits = logits.float().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        return hits[:, 0].sum(), hits.sum()

    def values(self) -> Tensor:
        """The sums of every process, on the CPU: processes x passes x COLUMNS."""
        return processes.gather(self.sums).cpu()

    @classmethod
    def averages(cls, names: Sequence[str], sums: Tensor) -> dict[str, float]:
        """Sums (passes x COLUMNS) → loss and accuracies by name. Without a finite loss, the loss is nan."""
        values: dict[str, float] = {}
        for name, (loss, right1, right5, images, not_finite) in zip(names, sums.tolist(), strict=True):
            values[f"loss_{name}"] = loss / (images - not_finite) if images > not_finite else math.nan
            if cls.of_classes:
                values[f"acc1_{name}"] = 100 * right1 / max(images, 1)
                values[f"acc5_{name}"] = 100 * right5 / max(images, 1)
        return values


class Log:
    """The log of a run. Only the main process writes."""

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self.active = processes.is_main()
        self.folder = folder
        self.failed = False
        self.board = self.make_board = None
        if tensorboard and self.active:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("--tensorboard needs a package that is not here: pip install tensorboard") from None
            self.make_board = SummaryWriter

    def start(self, run: str, epoch: int, step: int, steps: int = 0) -> None:
        """A run of `steps` an epoch begins, or goes on from there: what it had noted after that, it will note again."""
        self.run, self.steps = run, steps
        if self.active:
            trim_metrics(self.folder, epoch, step)
        if self.make_board:  # only now: an earlier run's files have been set aside
            with as_user_error(self.folder, "TensorBoard's events cannot be written there"):
                self.board = self.make_board(self.folder)

    def start_epoch(self, epoch: int, step: int, steps: int) -> None:
        """The clocks start; a bar opens if a person watches."""
        self.epoch, self.steps = epoch, steps
        self.last = self.began = time.perf_counter(), step
        settings = {"unit": "step", "dynamic_ncols": True, "disable": not (self.active and sys.stderr.isatty())}
        self.bar = tqdm(total=steps, initial=step, desc=f"Epoch {epoch}", **settings)

    def point(self, step: int, images: int, values: dict[str, float]) -> None:
        """A log point after `step` steps of the epoch and, since the last one, `images` images of all processes."""
        now = time.perf_counter()
        (then, last_step), self.last = self.last, (now, step)
        seconds = max(now - then, 1e-9)
        values = {**values, "images_per_second": images / seconds}
        if torch.cuda.is_initialized():
            values["memory_mb"] = torch.cuda.max_memory_allocated() >> 20
        self.record("step", self.epoch, step, values)
        short = {"images_per_second": "img/s", "memory_mb": "max mem (MB)"}
        line = "  ".join(f"{short.get(name, name)}: {value:.4g}" for name, value in values.items())
        if self.bar.disable:
            eta = timedelta(seconds=int((self.steps - step) * seconds / max(step - last_step, 1)))
            log.info("Epoch: [%d]  [%d/%d]  eta: %s  %s", self.epoch, step, self.steps, eta, line)
        else:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix_str(line)

    def end_epoch(self, values: dict[str, Any], epochs: int) -> None:
        """Note the outcome of an epoch, how long a whole one takes, and when the run will be done."""
        then, first_step = self.began
        seconds = time.perf_counter() - then
        whole = seconds * self.steps / max(self.steps - first_step, 1)  # it may have gone on inside the epoch
        self.record("epoch", self.epoch, self.steps, {**values, "seconds": round(seconds, 3)})
        took, left = timedelta(seconds=round(whole)), epochs - self.epoch - 1
        until = f"; the {left} left take about {timedelta(seconds=round(whole * left))}" if left else ""
        log.info("Epoch: [%d] took %s%s", self.epoch, took, until)

    def record(self, event: str, epoch: int, step: int, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl. That it cannot be written does not end a run."""
        if not self.active:
            return
        line = {"event": event, "run": self.run, "time": round(time.time(), 3), "epoch": epoch, "step": step}
        numbers = {name: value for name, value in values.items() if isinstance(value, float | int)}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}  # JSON knows no nan
        path = self.folder / METRICS
        try:
            with open(path, "a") as file:
                file.write(json.dumps(line | values | finite) + "\n")
        except OSError as error:
            if not self.failed:
                log.warning("%s: cannot be written (%s); training goes on without it", path, error.strerror)
            self.failed = True
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(f"{event}/{name}", value, epoch * self.steps + step)
            self.board.flush()
