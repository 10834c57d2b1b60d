"""results/systems.md: depth, widths, a gate and resolutions beside each other, from the runs of the grid `systems`.

What a training step and a call take is measured by itself (`costs.py`), when nothing else runs here: `systems --costs`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.reproduce.page import KINDS, mean, verdicts
from benchmarks.reproduce.questions import GRID, QUESTIONS, Outcome
from benchmarks.speed.results import quartiles
from utils.evaluate.picture import draw
from utils.evaluate.table import Row
from utils.files import whole_file

COSTS = "systems-costs.json"
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
REFINEMENT = """
What the last block of each stage, which the base-net skips, changes in the super-net, |F(h)| / |h|, and the
cosine between super-net and base-net behind the stage:
"""


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
        known = {call["batch"] for call in self.calls if call.get("joules_per_image")}
        return [batch for batch in BATCHES if batch in known]


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
        mine = [run for run in content["runs"] if run["setting"] == setting]
        outcomes = [Outcome(mine, kind) for kind in KINDS]
        calibrated = outcomes[-1]
        asked = {KINDS[one.kind]: [c for about in QUESTIONS for c in about(one) if c.values] for one in outcomes}
        timed = costs if costs and costs.setting == setting else None
        lines += [f"\n## {setting}\n", *table(calibrated, timed), "", *verdicts("question | difference", asked)]
        lines += refinement(calibrated, timed) if timed and timed.blocks else []
        if draw_outcome(calibrated, timed, setting, picture := folder / f"{GRID}-{setting}.png"):
            lines.append(f"\n![{setting}: accuracy over cost]({picture.name})")
    with whole_file(page := folder / f"{GRID}.md") as file:
        file.write(("\n".join(lines) + "\n").encode())
    return page


def table(outcome: Outcome, costs: Costs | None) -> list[str]:
    columns = ["training", "network", "10⁶ MACs", *KINDS.values()]
    if costs:
        columns += [f"ms, {batch}" for batch in BATCHES] + [f"mJ, {batch}" for batch in costs.metered] + ["step"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for method in dict.fromkeys(method for method, _ in outcome.runs):
        for name in outcome.subnets(method):
            macs, *top1 = (outcome.values(method, name, what).values() for what in ("gmacs", *KINDS))
            cells = [outcome.titles[method], name, f"{1000 * fmean(macs):.2f}", *map(mean, top1)]
            if costs:
                found = [costs.call(method, name, batch) for batch in BATCHES]
                joules = [costs.call(method, name, batch, "joules_per_image") for batch in costs.metered]
                found += [joule and 1000 * joule for joule in joules]
                cells += [f"{value:.2f}" if value else "" for value in found] + [costs.step(method)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def refinement(outcome: Outcome, costs: Costs) -> list[str]:
    """Of the super-net's blocks and the base-net's likeness, mean over seeds and 256 test images."""
    stages = next(found["cosine"] for seeds in costs.blocks.values() for found in seeds.values())
    lines = [REFINEMENT, f"| training | {' | '.join(f'stage {n}: change | cosine' for n in stages)} |"]
    lines.append("|---" * (1 + 2 * len(stages)) + "|")
    for method, seeds in costs.blocks.items():
        cells = []
        for stage in stages:
            cells.append(mean([found["changes"]["super-net"][stage][-1] for found in seeds.values()]))
            cells.append(mean([found["cosine"][stage] for found in seeds.values()]))
        lines.append(f"| {outcome.titles[method]} | {' | '.join(cells)} |")
    return lines


def draw_outcome(outcome: Outcome, costs: Costs | None, title: str, path: Path) -> bool:
    """Depth filled, the others hollow, over MACs and, where it was measured, over latency."""
    points: dict[str, list[dict[str, float | None]]] = {}
    for method in ("plain", *ASKED):
        for name in outcome.subnets(method):
            gmacs, top1 = (fmean(outcome.values(method, name, what).values()) for what in ("gmacs", outcome.kind))
            point = {"gmacs": gmacs, "top1": top1, "latency_ms": costs and costs.call(method, name)}
            points.setdefault(method, []).append(point)
    if not (depth := points.pop("adn", None)):
        return False
    rows = [
        Row(name, point["gmacs"], 0, point["latency_ms"], point["top1"], 0)
        for name, point in zip(outcome.subnets("adn"), depth, strict=True)
    ]
    return draw(rows, f"{title}, mean over seeds, calibrated", path, {outcome.titles[m]: points[m] for m in points})
