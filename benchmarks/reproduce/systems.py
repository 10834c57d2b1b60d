"""results/systems.md: depth, widths, a gate and resolutions beside each other, from the runs of the grid `systems`.

What a training step and a call take is measured by itself, when nothing else runs here: `systems --costs`.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.reproduce.grids import GRIDS, METHODS, Run, Sizes
from benchmarks.reproduce.page import BETTER, KINDS, SAME, Claim, mean, paired
from benchmarks.speed.results import quartiles
from utils.errors import UserError
from utils.evaluate.picture import draw
from utils.evaluate.table import Row
from utils.files import whole_file

GRID, COSTS = "systems", "systems-costs.json"
OPENING = """# Depth, widths, a gate and resolutions, side by side

Written by `python -m benchmarks.reproduce --report` from results/systems.json, which names every run's command, and
from results/systems-costs.json (`python -m benchmarks.reproduce systems --costs`). One recipe for all: the same images,
epochs, batches and optimizer, networks of the same make, nothing tuned for any of them. Acc@1 (%) of the last epoch on
all test images, mean ± standard deviation over seeds: raw, with the batch-norm statistics of training, and calibrated,
with statistics of each sub-network's own. Differences are paired by seed, in points; one no larger than its standard
deviation is called no difference. *Step*: time of a training step, that of the plain network being 1; rounds in which
all methods took turns, quartiles in brackets. *ms*: of a call on one image, and on 64; *mJ*: of an image in it, where
there is a meter. What a gate takes is the mean over the images."""
ASKED = ("adn", "drawn", "slimmable", "sandwich", "dsnet", "gate", "san")  # beside the plain network
BATCHES = (1, 64)
REFINED = ("adn", "labels")  # with and without self-distillation, from which blocks should learn to only refine


@dataclass
class Costs:
    """Milliseconds: of training steps in each round, and of calls; joules where there is a meter."""

    machine: dict[str, Any]
    setting: str
    steps: dict[str, list[float]]  # by method
    calls: list[dict[str, Any]]  # method, subnet, batch, ms, joules_per_image
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)  # by method and seed, see tools.activation_maps

    def step(self, method: str) -> str:
        if method not in self.steps:
            return ""
        low, middle, high = quartiles([a / b for a, b in zip(self.steps[method], self.steps["plain"], strict=True)])
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    def call(self, method: str, subnet: str, batch: int = 1, what: str = "ms") -> float | None:
        wanted = {"method": method, "subnet": subnet, "batch": batch}
        return next((call.get(what) for call in self.calls if wanted.items() <= call.items()), None)

    @property
    def metered(self) -> list[int]:
        """The batches of which the energy is known."""
        return [
            batch for batch in BATCHES if any(c["batch"] == batch and c.get("joules_per_image") for c in self.calls)
        ]


def measure(work: Path, results: Path) -> Path:
    """On the last setting, its first seed's networks and test images. All steps take turns, then all calls."""
    from benchmarks.speed import ways
    from benchmarks.speed.results import Results
    from deploy.measure import Energies
    from utils.evaluate.latency import take_turns
    from utils.setup import choose_device

    first = GRIDS[GRID].runs[-1]._replace(seed=0)
    setting, pixels = first.setting, int(first.setting.sizes.split()[0])
    runs = {method: first._replace(method=method) for method in ("plain", *ASKED)}
    device = choose_device("auto")
    case = ways.Case("mobilenet_v2_small", 64, pixels, device, compiled=False)
    flags = {m: " ".join(run.flags("training")) for m, run in runs.items() if not run.before}
    print("training steps …", file=sys.stderr)
    steps = {method: ways.our_step(case, flags) for method, flags in flags.items()}
    samples = take_turns(steps, device, ways.Effort(2, 9, 15, 120))
    calls, energies = [], Energies(2.0, device)
    for batch in BATCHES:
        print(f"calls on {batch} …", file=sys.stderr)
        made = {}
        for method, run in runs.items():
            found = calls_of(run, work / GRID, batch)
            made |= {(method, name): call for name, call in found.items()}
        for (method, name), times in take_turns(made, device, ways.Effort(3, 9, 30, 60)).items():
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
    from deploy.measure import load
    from utils.data.loading import eval_loader, load_data

    weights = work / (run.before or run).name / "checkpoint.pth"
    if not weights.exists():
        raise UserError(f"{weights}: not there; `python -m benchmarks.reproduce {GRID}` trains it")
    asked = f"{run.setting.network} {METHODS[run.method].network} --batch-size {images} --val-images {images}"
    network = load([*asked.format(sizes=Sizes(run.setting.sizes)).split(), "--workers", "0", "--weights", str(weights)])
    batches = network.on_device(eval_loader(load_data(network.args, network.args.sizes), network.args))
    return network.model.eval(), next(iter(batches)).images


def calls_of(run: Run, work: Path, batch: int) -> dict[str, Callable[[], Any]]:
    """Those sub-networks that the method is tested in, on real images: a gate looks at them."""
    import torch

    from utils.flags.evaluation import chosen

    model, images = trained(run, work, batch)

    @torch.no_grad()
    def call(view: Any, subnet: Any) -> None:
        model(view, subnet)

    subnets = chosen(model, METHODS[run.method].tested.split())
    return {model.name(subnet): partial(call, model.images_for(images, subnet), subnet) for subnet in subnets}


def blocks_of(run: Run, work: Path) -> dict[str, Any]:
    """How much each block changes what runs through it, and how alike super-net and base-net are behind each stage."""
    from tools.activation_maps import changes, cosines

    model, images = trained(run, work, 256)
    return {"changes": changes(model, [images]), "cosine": cosines(model, [images])}


class Outcome:
    """The runs of a setting, with accuracies of one kind."""

    def __init__(self, runs: list[dict[str, Any]], kind: str = "calibrated") -> None:
        self.kind = kind
        self.runs = {(run["method"], run["seed"]): run["subnets"] for run in runs}
        setting = next(run.setting for run in GRIDS[GRID].runs if run.setting.name == runs[0]["setting"])
        self.titles = {method: Run(setting, method, 0).title for method, _ in self.runs}

    def values(self, method: str, subnet: str, what: str | None = None) -> dict[int, float]:
        """By seed: the accuracy, or whatever a result has by this name."""
        mine = {seed: found for (name, seed), found in self.runs.items() if name == method}
        return {seed: found[subnet][what or self.kind] for seed, found in mine.items() if subnet in found}

    def subnets(self, method: str) -> list[str]:
        """From the dearest to the cheapest."""
        found = next((subnets for (name, _), subnets in self.runs.items() if name == method), {})
        return sorted(found, key=lambda subnet: -found[subnet]["gmacs"])

    def at(self, method: str, gmacs: dict[int, float]) -> dict[int, float]:
        """By seed: what the method's sub-networks have at this cost, on the lines between them."""
        found = {}
        for seed in gmacs.keys() & {seed for name, seed in self.runs if name == method}:
            points = sorted((row["gmacs"], row[self.kind]) for row in self.runs[method, seed].values())
            found[seed] = float(np.interp(gmacs[seed], *zip(*points, strict=True)))
        return found

    def point(self, method: str, subnet: str, costs: Costs | None) -> dict[str, float | None]:
        latency = costs and costs.call(method, subnet)
        gmacs, top1 = (fmean(self.values(method, subnet, what).values()) for what in ("gmacs", None))
        return {"gmacs": gmacs, "top1": top1, "latency_ms": latency}


Values = dict[int, float]  # by seed


def compared(text: str, label: str, ours: Values, theirs: Values, *wanted: str) -> Claim:
    return Claim(text, label, paired(lambda a, b: a - b, ours, theirs), wanted)


def about_the_largest(of: Outcome) -> Iterator[Claim]:
    plain = of.values("plain", "FFF")
    for method in ("adn", "drawn", "slimmable", "sandwich", "san"):
        for name in of.subnets(method)[:1]:
            label = f"{method} {name} − plain"
            yield compared("The largest is as good as alone", label, of.values(method, name), plain, BETTER, SAME)


def about_depth(of: Outcome) -> Iterator[Claim]:
    names = of.subnets("adn")
    for method in ("adn", "drawn"):
        for base in names[-1:]:
            ours, alone = (of.values(name, base) for name in (method, "base"))
            yield compared(
                "The base-net is as good as alone", f"{method} {base} − base alone", ours, alone, BETTER, SAME
            )
            label = f"{method}, the worst − the lower of super-net − 0.8 and base alone"
            every = [of.values(method, name) for name in names]
            margins = paired(lambda alone, *top1: min(top1) - min(top1[0] - 0.8, alone), alone, *every)
            yield Claim("Every depth is of use", label, margins, (BETTER, SAME))
    for name in names[:1] + names[-1:]:
        values, label = (of.values(method, name) for method in ("adn", "labels")), f"adn {name} − labels"
        yield compared("Self-distillation helps depth", label, *values, BETTER)
    for base in names[-1:]:
        for method in ("drawn", "slimmable", "sandwich", "san"):
            label = f"adn {base} − {method} at its MACs"
            theirs = of.at(method, of.values("adn", base, "gmacs"))
            yield compared("Depth beside the others, at the base-net's cost", label, of.values("adn", base), theirs)


def about_widths(of: Outcome) -> Iterator[Claim]:
    for method in ("slimmable", "sandwich"):
        names = of.subnets(method)
        for wide, narrow in pairwise(names):
            values, label = (of.values(method, width) for width in (wide, narrow)), f"{method} {wide} − {narrow}"
            yield compared("Wider is as good or better", label, *values, BETTER, SAME)
    for width in of.subnets("sandwich")[1:-1]:
        least = {seed: raw + 10 for seed, raw in of.values("sandwich", width, "top1").items()}
        label = f"sandwich {width} − (raw + 10)"
        yield compared("Calibration brings ten points", label, of.values("sandwich", width), least, BETTER)
    for method, without in (("sandwich", "sandwich-labels"), ("slimmable-distilled", "slimmable")):
        for width in of.subnets(method):
            values = (of.values(name, width) for name in (method, without))
            yield compared("In-place distillation helps", f"{method} {width} − {without}", *values, BETTER)


def about_gates(of: Outcome) -> Iterator[Claim]:
    for method in ("gate", "gate-corrected"):
        uniform, label = of.at("dsnet", of.values(method, "gate", "gmacs")), f"{method} − dsnet at its MACs"
        yield compared("A gate beats one width for all images", label, of.values(method, "gate"), uniform, BETTER)
    official, corrected = (of.values(method, "gate") for method in ("gate", "gate-corrected"))
    yield compared("The gate's loss without its slips", "gate-corrected − gate", corrected, official)


def about_resolutions(of: Outcome) -> Iterator[Claim]:
    for number, size in enumerate(of.subnets("san")):
        at, alone = (of.values(f"plain-{how}-{number}" if number else "plain", "FFF") for how in ("at", "of"))
        ours = of.values("san", size)
        if number:
            yield compared(
                "It beats one plain network at other sizes", f"san {size} − plain at {size}", ours, at, BETTER
            )
        yield compared("It is as good as one for each size", f"san {size} − plain of {size}", ours, alone, BETTER, SAME)


QUESTIONS = (about_the_largest, about_depth, about_widths, about_gates, about_resolutions)


def write(folder: Path) -> Path | None:
    """The page and its pictures. None without results."""
    if not (path := folder / f"{GRID}.json").exists():
        return None
    content = json.loads(path.read_text())
    kept = folder / COSTS
    costs = Costs(**json.loads(kept.read_text())) if kept.exists() else None
    lines = [OPENING, f"\n{content['note']}. {len(content['runs'])} of {content['planned']} runs."]
    if costs:
        about = ", ".join(f"{key} {value}" for key, value in costs.machine.items() if value)
        lines.append(f"Times: {costs.setting}; {about}.")
    for setting in dict.fromkeys(run["setting"] for run in content["runs"]):
        raw, of = (Outcome([run for run in content["runs"] if run["setting"] == setting], kind) for kind in KINDS)
        timed = costs if costs and costs.setting == setting else None
        lines += [f"\n## {setting}\n", *table(of, timed), "", *verdicts([raw, of])]
        lines += ["", *refinement(of, timed)] if timed and timed.blocks else []
        if draw_outcome(of, timed, setting, picture := folder / f"{GRID}-{setting}.png"):
            lines.append(f"\n![{setting}: accuracy over cost]({picture.name})")
    with whole_file(page := folder / f"{GRID}.md") as file:
        file.write(("\n".join(lines) + "\n").encode())
    return page


def table(of: Outcome, costs: Costs | None) -> list[str]:
    columns = ["training", "network", "10⁶ MACs", "raw", "calibrated"]
    if costs:
        columns += [f"ms, {batch}" for batch in BATCHES] + [f"mJ, {batch}" for batch in costs.metered] + ["step"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for method in dict.fromkeys(method for method, _ in of.runs):
        for name in of.subnets(method):
            values = (of.values(method, name, what).values() for what in ("gmacs", "top1", "calibrated"))
            macs, *top1 = values
            cells = [of.titles[method], name, f"{1000 * fmean(macs):.2f}", *map(mean, top1)]
            if costs:
                found = [costs.call(method, name, batch) for batch in BATCHES]
                joules = [costs.call(method, name, batch, "joules_per_image") for batch in costs.metered]
                found += [joule and 1000 * joule for joule in joules]
                cells += [f"{value:.2f}" if value else "" for value in found] + [costs.step(method)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def verdicts(kinds: list[Outcome]) -> list[str]:
    """All questions, asked of each kind of accuracies."""
    lines = [
        f"| question | difference | {' | '.join(f'{KINDS[of.kind]} | verdict' for of in kinds)} |",
        "|---" * 6 + "|",
    ]
    asked = ([claim for about in QUESTIONS for claim in about(of) if claim.values] for of in kinds)
    for claims in zip(*asked, strict=True):
        found = " | ".join(f"{mean(claim.values, '+')} | {claim.verdict}" for claim in claims)
        lines.append(f"| {claims[0].text} | {claims[0].label} | {found} |")
    return lines


def refinement(of: Outcome, costs: Costs) -> list[str]:
    """Of the super-net's blocks and the base-net's likeness, mean over seeds and 256 test images."""
    first = next(iter(next(iter(costs.blocks.values())).values()))["cosine"]
    lines = [
        "What the last block of each stage, which the base-net skips, changes in the super-net, |F(h)| / |h|, and the"
    ]
    lines += ["cosine between super-net and base-net behind the stage:", ""]
    lines.append(f"| training | {' | '.join(f'stage {n}: change | cosine' for n in first)} |")
    lines.append("|---" * (1 + 2 * len(first)) + "|")
    for method, seeds in costs.blocks.items():
        cells = []
        for stage in first:
            cells.append(mean([found["changes"]["super-net"][stage][-1] for found in seeds.values()]))
            cells.append(mean([found["cosine"][stage] for found in seeds.values()]))
        lines.append(f"| {of.titles[method]} | {' | '.join(cells)} |")
    return lines


def draw_outcome(of: Outcome, costs: Costs | None, title: str, path: Path) -> bool:
    """Depth filled, the others hollow, over MACs and, where it was measured, over latency."""
    points = {m: [of.point(m, name, costs) for name in of.subnets(m)] for m in ("plain", *ASKED) if of.subnets(m)}
    if not (depth := points.pop("adn", None)):
        return False
    rows = [
        Row(name, point["gmacs"], 0, point["latency_ms"], point["top1"], 0)
        for name, point in zip(of.subnets("adn"), depth, strict=True)
    ]
    return draw(rows, f"{title}, mean over seeds, calibrated", path, {of.titles[m]: points[m] for m in points})
