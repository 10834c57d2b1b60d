"""results/systems-costs.json: what training steps and calls of the grid `systems` take, when nothing else runs here."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.reproduce.grids import GRIDS, METHODS, Run, Sizes
from benchmarks.reproduce.questions import GRID
from benchmarks.reproduce.systems import ASKED, BATCHES, COSTS, Costs
from benchmarks.speed import ways
from benchmarks.speed.results import Results
from deploy.measure import Energies, load
from tools.activation_maps import changes, cosines
from utils.data.loading import eval_loader, load_data
from utils.errors import UserError
from utils.evaluate.latency import Effort, take_turns
from utils.files import whole_file
from utils.flags.evaluation import chosen
from utils.setup import choose_device

REFINED = ("adn", "labels")  # with and without self-distillation, from which blocks should learn to only refine


def measure(work: Path, results: Path) -> Path:
    """On the last setting, its first seed's networks and test images. All steps take turns, then all calls."""
    first = GRIDS[GRID].runs[-1]._replace(seed=0)
    setting, pixels = first.setting, int(first.setting.sizes.split()[0])
    runs = {method: first._replace(method=method) for method in ("plain", *ASKED)}
    device = choose_device("auto")
    case = ways.Case("mobilenet_v2_small", 64, pixels, device, compiled=False)
    print("training steps …", file=sys.stderr)
    steps = {m: ways.our_step(case, " ".join(run.flags("training"))) for m, run in runs.items() if not run.before}
    samples = take_turns(steps, device, Effort(2, 9, 15, 120))
    calls, energies = [], Energies(2.0, device)
    for batch in BATCHES:
        print(f"calls on {batch} …", file=sys.stderr)
        made = {}
        for method, run in runs.items():
            found = calls_of(run, work / GRID, batch)
            made |= {(method, name): call for name, call in found.items()}
        for (method, name), times in take_turns(made, device, Effort(3, 9, 30, 60)).items():
            joules = energies.joules(made[method, name], batch)
            about = {"method": method, "subnet": name, "batch": batch}
            calls.append(about | {"ms": median(times), "joules_per_image": joules})
    seeds = [run.seed for run in GRIDS[GRID].runs if (run.setting, run.method) == (setting, "adn")]
    blocks = {m: {seed: blocks_of(Run(setting, m, seed), work / GRID) for seed in seeds} for m in REFINED}
    costs = Costs(Results.on(device).machine | energies.about, setting.name, samples, calls, blocks)
    with whole_file(path := results / COSTS) as file:
        file.write(json.dumps(asdict(costs), indent=1).encode() + b"\n")
    return path


def trained(run: Run, work: Path, images: int) -> tuple[Any, Any]:
    """The run's network, on its device, and the first test images."""
    trained_in = run if "training" in run.purposes else run.before
    weights = work / trained_in.name / "checkpoint.pth"
    if not weights.exists():
        raise UserError(f"{weights}: not there; `python -m benchmarks.reproduce {GRID}` trains it")
    asked = f"{run.setting.network} {METHODS[run.method].network} --batch-size {images} --val-images {images}"
    network = load([*asked.format(sizes=Sizes(run.setting.sizes)).split(), "--workers", "0", "--weights", str(weights)])
    batches = network.on_device(eval_loader(load_data(network.args, network.args.sizes), network.args))
    return network.model.eval(), next(iter(batches)).images


def calls_of(run: Run, work: Path, batch: int) -> dict[str, Callable[[], Any]]:
    """Those sub-networks that the method is tested in, on real images: a gate looks at them."""
    model, images = trained(run, work, batch)

    @torch.no_grad()
    def call(view: Any, subnet: Any) -> None:
        model(view, subnet)

    subnets = chosen(model, METHODS[run.method].tested.split())
    return {model.name(subnet): partial(call, model.images_for(images, subnet), subnet) for subnet in subnets}


def blocks_of(run: Run, work: Path) -> dict[str, Any]:
    """How much each block changes what runs through it, and how alike super-net and base-net are behind each stage."""
    model, images = trained(run, work, 256)
    return {"changes": changes(model, [images]), "cosine": cosines(model, [images])}
