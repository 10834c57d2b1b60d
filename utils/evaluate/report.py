"""`--test-only`: one sub-network's accuracy, or the table of several with its picture and the best within a budget."""

import logging
import platform
from argparse import Namespace
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import __version__ as vision_version

from utils.data.loading import Batch
from utils.evaluate import picture, table
from utils.evaluate.accuracy import Result, evaluate
from utils.evaluate.latency import latencies
from utils.evaluate.table import Budget, Row
from utils.processes import from_main, is_main, on_main, world_size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A network to test, with what only the command knows of it."""

    model: nn.Module
    prepare: Callable[[Batch], tuple[Tensor, Tensor]]  # → images and targets on the device
    autocast: Callable  # makes a context manager
    name: Callable[[Hashable], str]  # of a sub-network
    cost: Callable[[Hashable], Any]  # of a sub-network: `macs` and `parameters`
    facts: dict[str, Any]  # model, weights, data_path, precision, …: for the first line and subnets.json
    published: picture.Published = field(default_factory=dict)


def run_test(subject: Subject, loader, subnets: Sequence[Hashable], args: Namespace) -> dict[Hashable, Result]:
    """Evaluate `subnets` in one pass and report; several of them (or a budget) give the table and its files too."""
    budget = Budget.of(args)
    if is_main():
        log.info("%s", _opening(subject, loader, subnets))
    costs = _costs(subject, subnets, args) if len(subnets) > 1 or budget else {}
    if budget:
        budget.within(_rows(subject, costs))  # an impossible one is said before the long part
    results = evaluate(subject.model, loader, subnets, subject.prepare, subject.autocast, args.on_corrupt)
    if is_main():
        for subnet, result in results.items():
            log.info("Test: %s  %d images  loss %.4f  %s", subject.name(subnet), result.images, result.loss, result)
    if costs:
        on_main(lambda: _report(subject, _rows(subject, costs, results), next(iter(results.values())), args))
    return results


def _opening(subject: Subject, loader, subnets: Sequence[Hashable]) -> str:
    names = subject.name(subnets[0]) if len(subnets) == 1 else f"{len(subnets)} sub-networks"
    facts = ", ".join(f"{name} {value}" for name, value in subject.facts.items() if value)
    return f"Testing {names} on {len(loader.dataset)} images in {world_size()} process(es): {facts}"


def _costs(subject: Subject, subnets: Sequence[Hashable], args: Namespace) -> dict[Hashable, tuple[Any, float | None]]:
    """Cost and latency of each sub-network, the latter measured in the main process while the others wait for it."""
    measured = dict.fromkeys(subnets)
    if args.latency_batch and is_main():
        size = args.val_crop_size
        blank = torch.zeros(args.latency_batch, 3, size, size, dtype=torch.uint8)
        images, _ = subject.prepare(Batch(blank, torch.zeros(args.latency_batch, dtype=torch.int64), []))
        measured = latencies(subject.model, subnets, images, subject.autocast)
    measured = from_main(measured)
    return {subnet: (subject.cost(subnet), measured[subnet]) for subnet in subnets}


def _rows(subject: Subject, costs: dict, results: dict[Hashable, Result] | None = None) -> list[Row]:
    """The table, cheapest first; accuracies are 0 before there are `results`."""
    rows = []
    for subnet, (cost, latency) in costs.items():
        top1, top5 = (results[subnet].top1, results[subnet].top5) if results else (0.0, 0.0)
        rows.append(Row(subject.name(subnet), cost.macs / 1e9, cost.parameters / 1e6, latency, top1, top5))
    return sorted(rows, key=lambda row: (row.gmacs, row.params_m))


def _report(subject: Subject, rows: list[Row], result: Result, args: Namespace) -> None:
    folder = Path(args.output_dir)
    facts = {
        **subject.facts,
        "images": result.images,
        "corrupt": list(result.corrupt),
        "latency_batch": args.latency_batch,
        "machine": _machine(next(subject.model.parameters()).device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchvision": vision_version},
    }
    log.info("%s", table.as_text(rows))
    written = [*table.write(rows, facts, folder)]
    if not args.no_picture:
        try:
            picture.draw(rows, _title(subject.facts), folder / "subnets.png", subject.published)
            written.append(folder / "subnets.png")
        except picture.Missing as error:  # the table is worth having without it
            log.warning("%s", error)
    log.info("written: %s", ", ".join(str(path) for path in written))
    budget = Budget.of(args)
    if budget:
        log.info("%s", table.choice(budget.best(rows), budget, facts))


def _title(facts: dict[str, Any]) -> str:
    return f"{facts.get('model', 'network')} on {facts.get('data', 'data')}: one set of weights"


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
