"""`--test-only`: one sub-network's accuracy, or the table of several with its picture and the best within a budget."""

import logging
import platform
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import __version__ as vision_version

from utils.data.loading import Batch
from utils.evaluate import picture, table
from utils.evaluate.accuracy import Result, evaluate
from utils.evaluate.latency import latencies
from utils.evaluate.table import Budget, Row
from utils.processes import from_main, is_main, on_main, world_size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What is told of a network beside accuracies, and where the table of several sub-networks goes."""

    facts: dict[str, Any]  # model, weights, data_path, precision, …: for the first line and subnets.json
    folder: Path
    image_size: int
    latency_batch: int  # images per call; 0: latency is not measured
    budget: Budget
    draw: bool  # the picture too
    published: picture.Published  # what it shows for comparison


def test(
    model: nn.Module,
    loader,
    subnets: Sequence[Hashable],
    on_device: Callable,
    autocast: Callable,
    on_corrupt: str,
    report: Report,
) -> dict[Hashable, Result]:
    """Evaluate `subnets` in one pass and report; several of them (or a budget) give the table and its files too."""
    names = f"{len(subnets)} sub-networks" if len(subnets) > 1 else model.name(subnets[0])
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items() if value)
    log.info("Testing %s on %d images in %d process(es): %s", names, len(loader.dataset), world_size(), facts)
    rows = _costs(model, subnets, on_device, autocast, report) if len(subnets) > 1 or report.budget else []
    if report.budget:
        report.budget.within(rows)  # an impossible one is said before the long part
    results = evaluate(model, loader, subnets, on_device, autocast, on_corrupt)
    for subnet, result in results.items():
        log.info("Test: %s  %d images  loss %.4f  %s", model.name(subnet), result.images, result.loss, result)
    if rows:
        found = zip(rows, results.values(), strict=True)
        rows = [replace(row, top1=result.top1, top5=result.top5) for row, result in found]
        result, device = results[subnets[0]], next(model.parameters()).device
        on_main(lambda: _write(sorted(rows, key=lambda row: (row.gmacs, row.params_m)), result, device, report))
    return results


def _costs(
    model: nn.Module, subnets: Sequence[Hashable], on_device: Callable, autocast: Callable, report: Report
) -> list[Row]:
    """The table without accuracies. Latency is measured in the main process, while the others wait for it."""
    measured = dict.fromkeys(subnets)
    if report.latency_batch and is_main():
        blank = torch.zeros(report.latency_batch, 3, report.image_size, report.image_size, dtype=torch.uint8)
        targets = torch.zeros(report.latency_batch, dtype=torch.int64)
        (batch,) = on_device([Batch(blank, targets, [])])
        measured = latencies(model, subnets, batch.images, autocast)
    measured = from_main(measured)
    costs = {subnet: model.cost(subnet, report.image_size) for subnet in subnets}
    return [
        Row(model.name(subnet), cost.macs / 1e9, cost.parameters / 1e6, measured[subnet], top1=0.0, top5=0.0)
        for subnet, cost in costs.items()
    ]


def _write(rows: Sequence[Row], result: Result, device: torch.device, report: Report) -> None:
    """The table on the screen and in its files, the picture, and the best row within the budget."""
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    facts = {
        **report.facts,
        "images": result.images,
        "corrupt": list(result.corrupt),
        "latency_batch": report.latency_batch,
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchvision": vision_version},
    }
    log.info("%s", table.as_text(rows))
    written = [*table.write(rows, facts, report.folder)]
    path, title = report.folder / "subnets.png", f"{facts.get('model')} on {facts.get('data')}: one set of weights"
    if report.draw and picture.draw(rows, title, path, report.published):
        written.append(path)
    log.info("written: %s", ", ".join(map(str, written)))
    if report.budget:
        log.info("%s", table.choice(report.budget.best(rows), report.budget, facts))
