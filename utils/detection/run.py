"""A detector in the training loop and in the table of sub-networks: what is there instead of a classifier's."""

import logging
import statistics
from argparse import Namespace
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils import processes
from utils.data.loading import Batch, Data, make_loader
from utils.detection.average_precision import Found, average_precision, match
from utils.errors import UserError
from utils.evaluate import table
from utils.evaluate.accuracy import running
from utils.evaluate.latency import Effort, take_turns
from utils.train.engine import Run
from utils.train.log import Meters
from utils.train.passes import Outputs

log = logging.getLogger(__name__)


class LossMeters(Meters):
    of_classes = False

    def hits(self, logits: Tensor, targets: Sequence) -> tuple[Tensor, Tensor]:
        return torch.zeros((), device=self.sums.device), torch.zeros((), device=self.sums.device)


def ask_detector(
    model: nn.Module, images: list[Tensor], targets: list | None, subnet: Hashable, taken: Callable | None
) -> Outputs:
    """A detector's losses stand in the place of logits; without targets there are none."""
    losses, features = model(images, targets, subnet, return_features=True)
    return Outputs(torch.stack(list(losses.values())) if losses else features[0].new_zeros(0), features)


def total(losses: Tensor, targets: Sequence) -> Tensor:
    return losses.sum()


def on_device(device: torch.device, loader: Iterable[Batch]) -> Iterator[Batch]:
    """Images from 0 to 1: a detector normalises them itself."""
    for images, targets, corrupt in loader:
        if corrupt:
            raise UserError(f"cannot decode {corrupt[0]}: mend the file")
        images = [image.to(device, non_blocking=True) / 255 for image in images]
        yield Batch(images, [{name: value.to(device) for name, value in own.items()} for own in targets], [])


def prepare(run: Run) -> Run:
    """The loop of classifiers becomes that of detectors."""
    run.step.ask, run.step.criterion = ask_detector, total
    run.on_device = partial(on_device, run.machine.device)
    run.mix = lambda images, targets, generator: (images, targets)
    run.meters, run.main = LossMeters, "box AP"
    run.evaluate = partial(evaluate, device=run.machine.device, autocast=run.machine.autocast)
    return run


@dataclass(frozen=True)
class Result:
    """Average precisions in per cent, of boxes and, if the detector gives them, masks."""

    figures: Mapping[str, float]

    def __str__(self) -> str:
        return "  ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in self.figures.items())


def evaluate(
    model: nn.Module, loader: DataLoader, subnets: Sequence[Hashable], device: torch.device, autocast: Callable
) -> dict[Hashable, Result]:
    """All images of all processes; the same results in every process."""
    scenes, kinds = loader.dataset, ("box", "mask") if loader.dataset.with_masks else ("box",)
    matches, seen = {(subnet, kind): {} for subnet in subnets for kind in kinds}, []
    bar = tqdm(loader, desc="evaluating", unit="batch", leave=False, disable=None if processes.is_main() else True)
    with running(model, autocast):
        for batch in on_device(device, bar):
            images = [int(own["index"]) for own in batch.targets]
            truths = [(image, scenes.truth(image)) for image in images]
            seen += images
            for subnet, detections in model.forward_all(batch.images, subnets).items():
                for (image, truth), own in zip(truths, detections, strict=True):
                    for kind in kinds:
                        matches[subnet, kind] |= match(image, truth, found(own), kind == "mask")
    if sorted(image for images in processes.gather_objects(seen) for image in images) != list(range(len(scenes))):
        raise RuntimeError("not every image was evaluated once: the sampler lost or repeated some")
    results = {}
    for subnet in subnets:
        figures = {}
        for kind in kinds:
            parts = processes.gather_objects(matches.pop((subnet, kind)))  # one by one: all are gigabytes on COCO
            whole = {place: one for part in parts for place, one in part.items()}
            figures |= {f"{kind}_{name}": 100 * value for name, value in average_precision(whole).items() if value >= 0}
        results[subnet] = Result(figures)
    return results


def calibrate(args: Namespace, device: torch.device, model: Any, data: Data, subnets: Sequence[Hashable]) -> None:
    """The same batches of training images whatever the number of processes, of which each takes its share."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(args.seed))
    batches = order[: args.calibrate * args.batch_size].split(args.batch_size)
    share = [batch.tolist() for batch in batches[processes.rank() :: processes.world_size()]]
    loader = make_loader(data.train, args, share, workers=0)
    norms = model.calibrate((b.images for b in on_device(device, loader)), subnets, processes.sum_over_processes)
    log.info("Calibrated: %d norms have statistics of each depth's own", norms)


def found(detections: Mapping[str, Tensor]) -> Found:
    boxes = detections["boxes"].double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    masks = (detections["masks"] > 0.5).cpu().numpy() if "masks" in detections else None
    return Found(detections["labels"].cpu().numpy(), detections["scores"].double().cpu().numpy(), boxes.numpy(), masks)


@dataclass(frozen=True)
class Row:
    """A sub-network: its backbone's cost on a square image of --min-size, all parameters, time and precision."""

    name: str
    gmacs: float
    params_m: float
    latency_ms: float
    box_AP: float
    box_AP50: float
    mask_AP: float | None = None


def test(
    args: Namespace, run_on: torch.device, autocast: Callable, model: Any, loader: DataLoader, subnets: list
) -> None:
    """--test-only: the table of sub-networks. Time is of the first image."""
    results = evaluate(model, loader, subnets, run_on, autocast)
    for subnet, result in results.items():
        log.info("Test: %s  %s", model.name(subnet), result)
    times = {}
    if processes.is_main():
        images = [loader.dataset[0][0].to(run_on) / 255]
        with running(model, autocast):
            calls = {subnet: partial(model, images, None, subnet) for subnet in subnets}
            times = take_turns(calls, run_on, Effort(warm_up=1, at_most=10))
    rows = []
    for subnet, values in processes.from_main(times).items():
        cost, figures = model.cost(subnet, args.min_size), results[subnet].figures
        precisions = (figures["box_AP"], figures["box_AP50"], figures.get("mask_AP"))
        median = statistics.median(values)
        rows.append(Row(model.name(subnet), cost.macs / 1e9, cost.parameters / 1e6, median, *precisions))
    rows.sort(key=lambda row: row.gmacs)
    lines = [f"{'sub-network':12} {'GMACs':>8} {'params M':>9} {'ms':>9} {'box AP':>7} {'AP50':>7} {'mask AP':>8}"]
    for row in rows:
        masks = "-" if row.mask_AP is None else f"{row.mask_AP:.2f}"
        figures = f"{row.gmacs:8.3f} {row.params_m:9.2f} {row.latency_ms:9.2f} {row.box_AP:7.2f} {row.box_AP50:7.2f}"
        lines.append(f"{row.name:12} {figures} {masks:>8}")
    log.info("%s", "\n".join(lines))
    facts = {"args": vars(args), "device": str(run_on), "images": len(loader.dataset)}
    written = processes.on_main(lambda: table.write(rows, facts, Path(args.output_dir)))
    log.info("written: %s", ", ".join(map(str, written)))
