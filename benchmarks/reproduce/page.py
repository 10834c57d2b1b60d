"""results/method.md, the whole of it: the paper's claims, asked of each setting's runs, with a picture."""

import json
from collections.abc import Collection
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from benchmarks.reproduce.grids import METHODS
from utils.errors import UserError
from utils.evaluate.picture import draw
from utils.evaluate.table import Row
from utils.files import whole_file

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference", "too few seeds"
OPENING = """# Does the method do what its paper says?

Written by `python -m benchmarks.reproduce --report` from results/*.json, which name every run's command. Accuracies
(Acc@1, %) of the last epoch on all test images, mean ± standard deviation over seeds. Differences are paired by seed,
in points; one no larger than its standard deviation is called no difference."""
NO_PREMISE = """
The premise is not met: the deeper network is no better than the shallower one even alone. So the claims about accuracy
say little here."""


class Claim(NamedTuple):
    text: str
    label: str  # of the difference
    values: list[float]  # one a seed
    wanted: tuple[str, ...]  # the differences with which it holds; none: nothing is claimed

    @property
    def verdict(self) -> str:
        if len(self.values) < 3:
            return UNKNOWN
        mean = fmean(self.values)
        difference = SAME if abs(mean) <= stdev(self.values) else BETTER if mean > 0 else WORSE
        return ("holds: " if difference in self.wanted else "**does not hold**: " if self.wanted else "") + difference


class Outcome:
    """The runs of a setting: accuracies of sub-networks, and what a training took, by method and seed."""

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self.runs = runs
        self.gmacs = {name: row["gmacs"] for run in runs for name, row in run["subnets"].items()}
        self.whole, self.half = max(self.gmacs, key=self.gmacs.get), min(self.gmacs, key=self.gmacs.get)

    def top1(self, method: str, subnet: str) -> dict[int, float]:
        found = {run["seed"]: run["subnets"].get(subnet) for run in self.runs if run["method"] == method}
        return {seed: row["top1"] for seed, row in found.items() if row}

    def means(self, *methods: str) -> dict[str, float]:
        found = [(name, self.top1(method, name).values()) for method in methods for name in self.gmacs]
        return {name: fmean(values) for name, values in found if values}

    def seconds(self, method: str) -> dict[int, float]:
        """On a CPU its time, which other programs do not change."""
        mine = [run for run in self.runs if run["method"] == method]
        return {run["seed"]: run["seconds"]["cpu" if run["device"] == "cpu" else "wall"] for run in mine}

    def claims(self) -> list[Claim]:
        """The premise comes first. One more claim is one more line."""
        whole, half, better, as_good = self.whole, self.half, (BETTER,), (BETTER, SAME)
        mean = self.means("adn")
        worst = min((name for name in mean if name not in (whole, half)), key=mean.get, default=half)
        lower = min((name for name in mean if name in (whole, half)), key=mean.get, default=half)
        ends = ((whole, "super-net"), (half, "base-net"))
        rows = (
            ("Premise: depth pays, in networks trained alone", ("super", whole), ("base", half), better),
            ("1. The super-net is as good as alone", ("adn", whole), ("super", whole), as_good),
            ("2. The base-net is as good as alone", ("adn", half), ("base", half), as_good),
            ("3. No sub-network falls below both trained ones", ("adn", worst), ("adn", lower), as_good),
            *((f"4. Self-distillation helps the {net}", ("adn", s), ("labels", s), better) for s, net in ends),
            *((f"4. Switchable norms help the {net}", ("adn", s), ("shared-norms", s), better) for s, net in ends),
            *((f"Both, {net}", ("adn", s), ("labels-shared-norms", s), ()) for s, net in ends),
            *((f"Distilling features as well, {net}", ("adn-features", s), ("adn", s), ()) for s, net in ends),
        )
        found = []
        for text, first, second, wanted in rows:
            values = paired(lambda a, b: a - b, self.top1(*first), self.top1(*second))
            found.append(Claim(text, f"{' '.join(first)} − {' '.join(second)}", values, wanted))
        seconds = (self.seconds(method) for method in ("adn", "super", "base"))
        saved = paired(lambda both, one, other: 100 * (1 - both / (one + other)), *seconds)
        found.append(Claim("5. One run costs less than two", "% of both individual runs' time saved", saved, better))
        return found[:1] + [claim for claim in found[1:] if claim.values]


def paired(function: Any, *by_seed: dict[int, float]) -> list[float]:
    """The function of several runs' values, for each seed that all of them have."""
    seeds = sorted(set.intersection(*(set(values) for values in by_seed)))
    return [function(*(values[seed] for values in by_seed)) for seed in seeds]


def write(folder: Path) -> Path:
    """The page and its pictures, from every grid's results, the larger grids first."""
    contents = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    grids = sorted((c for c in contents if "grid" in c), key=lambda content: (-content["planned"], content["grid"]))
    if not grids:
        raise UserError(f"{folder}: no results of a grid there; run `python -m benchmarks.reproduce` first")
    lines = [OPENING]
    for content in grids:
        name, runs = content["grid"], content["runs"]
        machines = "; ".join(sorted({f"{run['machine']}, torch {run['versions']['torch']}" for run in runs}))
        hours = f"{sum(run['seconds']['cpu'] for run in runs) / 3600:.1f} processor hours of training"
        lines.append(f"\n## Grid `{name}`\n\n{content['note']}. {len(runs)} of {content['planned']} runs ({machines};")
        lines.append(f"{hours}). Run it again: `python -m benchmarks.reproduce {name}`.")
        for setting in dict.fromkeys(run["setting"] for run in runs):
            outcome = Outcome([run for run in runs if run["setting"] == setting])
            lines += [f"\n### {setting}\n", *tables(outcome)]
            rows = [Row(n, outcome.gmacs[n], 0, None, top1, 0) for n, top1 in outcome.means("adn").items()]
            alone = [{"gmacs": outcome.gmacs[n], "top1": a} for n, a in outcome.means("super", "base").items()]
            if rows and alone:
                picture = folder / f"{name}-{setting}.png"
                others = {"super-net and base-net trained alone": alone}
                if draw(rows, f"{setting}, mean over seeds", picture, others):
                    lines.append(f"\n![{setting}: accuracy over GMACs]({picture.name})")
    with whole_file(page := folder / "method.md") as file:
        file.write(("\n".join(lines) + "\n").encode())
    return page


def tables(outcome: Outcome) -> list[str]:
    lines = [
        "| training | seeds | super-net | base-net | time of a run (super-net alone = 1) |",
        "|---|---|---|---|---|",
    ]
    for method, (title, *_) in METHODS.items():
        if seconds := outcome.seconds(method):
            top1 = [mean(outcome.top1(method, subnet).values()) for subnet in (outcome.whole, outcome.half)]
            times = mean(paired(lambda run, alone: run / alone, seconds, outcome.seconds("super")))
            lines.append(f"| {title} | {len(seconds)} | {' | '.join(top1)} | {times} |")
    lines += ["", "| claim | measured | difference | verdict |", "|---|---|---|---|"]
    claims = outcome.claims()
    lines += [f"| {c.text} | {c.label} | {mean(c.values, '+')} | {c.verdict} |" for c in claims]
    return [*lines, NO_PREMISE] if claims[0].verdict.startswith("**") else lines


def mean(values: Collection[float], sign: str = "") -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.2f}{spread}" if values else "–"
