"""`--test-only`: one sub-network's accuracy, or the table of several with its picture and the best within a budget."""

import argparse
import logging
import platform
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import __version__ as vision_version

from utils.data.device import OnDevice
from utils.data.loading import Batch, Data
from utils.evaluate import picture, table
from utils.evaluate.accuracy import evaluate
from utils.evaluate.latency import latencies
from utils.evaluate.predictions import Predictions
from utils.evaluate.table import Budget, Row
from utils.flags.evaluation import chosen
from utils.processes import from_main, is_main, on_main, world_size
from utils.setup import Machine

log = logging.getLogger(__name__)

Published = Mapping[str, Mapping[str, Mapping[str, float]]]  # release → sub-network → `gmacs` and `acc@1`


def test(
    args: argparse.Namespace,
    machine: Machine,
    model: nn.Module,
    data: Data,
    loader: DataLoader,
    about: Mapping[str, str | None],
    published: Published,
) -> None:
    """Evaluate what --skip-cfg names in one pass and report; several sub-networks, or a budget, give the table too.

    `about` says which weights and statistics these are; `published` is what the picture shows for comparison.
    """
    others = _to_compare(args.compare, published)
    budget, subnets = Budget.of(args), asked_for(args, model)
    on_device = machine.place(model, args.channels_last)
    if args.torch_compile:
        model.compile()
    facts = _facts(args, machine, on_device, {**about, "data": data.name})
    names = f"{len(subnets)} sub-networks" if len(subnets) > 1 else model.name(subnets[0])
    said = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    log.info("Testing %s on %d images in %d process(es): %s", names, len(data.val), world_size(), said)
    rows = _costs(args, model, subnets, on_device, machine.autocast) if len(subnets) > 1 or budget else []
    if budget:
        budget.within(rows)  # an impossible one is said before the long part
    kept = Predictions(data.val, data.classes, list(map(model.name, subnets))) if args.save_predictions else None
    results = evaluate(model, loader, subnets, on_device, machine.autocast, args.on_corrupt, kept.add if kept else None)
    for subnet, result in results.items():
        log.info("Test: %s  %d images  loss %.4f  %s", model.name(subnet), result.images, result.loss, result)
    result = results[subnets[0]]
    if rows:
        facts |= {"images": result.images, "corrupt": list(result.corrupt)}
        for place, found in enumerate(results.values()):
            spent = {} if found.macs is None else {"gmacs": found.macs / 1e9}  # where images differ in it
            rows[place] = replace(rows[place], top1=found.top1, top5=found.top5, **spent)
        rows.sort(key=lambda row: (row.gmacs, row.params_m))
        on_main(lambda: _write(args, machine.device, rows, facts, others))
    if kept:
        kept.write(result.corrupt, Path(args.output_dir), not args.no_picture)


def asked_for(args: argparse.Namespace, model: nn.Module) -> list[Hashable]:
    """The sub-networks that --skip-cfg names; where it does not, all if there is a budget to choose by."""
    return chosen(model, args.skip_cfg or (["all"] if Budget.of(args) else None))


def _facts(args: argparse.Namespace, machine: Machine, on_device: OnDevice, about: dict[str, Any]) -> dict[str, Any]:
    """What is tested and how, for the log and for subnets.json."""
    facts = {name: getattr(args, name, None) for name in table.REPEATED} | about
    layout = str(on_device.to_float.memory_format).removeprefix("torch.")
    facts |= {"device": str(machine.device), "precision": machine.precision, "memory_format": layout}
    return facts | {"compiled": args.torch_compile}


def _to_compare(tables: Sequence[str] | None, published: Published) -> dict[str, picture.Points]:
    """What the picture shows beside, by name: published points, and those of --compare's tables."""
    found = {}
    for release, points in published.items():
        theirs = [{"gmacs": point["gmacs"], "top1": point["acc@1"]} for point in points.values()]
        found[f"{release} (published)"] = theirs
    for path in map(Path, tables or ()):
        found[path.absolute().parent.name] = [vars(row) for row in table.read(path, "--compare")[0]]
    return found


def _costs(
    args: argparse.Namespace, model: nn.Module, subnets: Sequence[Hashable], on_device: Callable, autocast: Callable
) -> list[Row]:
    """The table without accuracies. Latency is measured in the main process, while the others wait for it."""
    measured, sizes = dict.fromkeys(subnets), {subnet: model.size(subnet) or args.val_crop_size for subnet in subnets}
    if args.latency_batch and is_main():
        count = args.latency_batch
        blank = [torch.zeros(count, 3, size, size, dtype=torch.uint8) for size in dict.fromkeys(sizes.values())]
        (batch,) = on_device([Batch(blank, torch.zeros(count, dtype=torch.int64), [])])
        measured = latencies(model, subnets, batch.images, autocast)
    measured = from_main(measured)
    costs = {subnet: model.cost(subnet, size) for subnet, size in sizes.items()}
    return [
        Row(model.name(subnet), cost.macs / 1e9, cost.parameters / 1e6, measured[subnet], top1=0.0, top5=0.0)
        for subnet, cost in costs.items()
    ]


def _write(args: argparse.Namespace, device: torch.device, rows: list[Row], facts: dict, others: dict) -> None:
    """The table on the screen and in its files, the picture, and the best within a budget."""
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": vision_version}
    facts = {**facts, "latency_batch": args.latency_batch, "machine": machine, "versions": versions}
    log.info("%s", table.as_text(rows))
    folder, title = Path(args.output_dir), f"{args.model} on {facts['data']}: one set of weights"
    written = [*table.write(rows, facts, folder)]
    if not args.no_picture and picture.draw(rows, title, folder / "subnets.png", others):
        written.append(folder / "subnets.png")
    log.info("written: %s", ", ".join(map(str, written)))
    if budget := Budget.of(args):
        log.info("%s", table.choice(budget.best(rows), budget, facts))
