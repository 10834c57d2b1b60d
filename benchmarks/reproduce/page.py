"""results/method.md, the whole of it: the paper's claims, asked of each setting's runs, with a picture."""

import json
from collections.abc import Collection, Iterable
from operator import attrgetter
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
(Acc@1, %) of the last epoch on all test images, mean ± standard deviation over seeds: raw, with the batch-norm
statistics of training as the paper has it, and calibrated, with statistics of each sub-network's own; networks trained
alone are treated alike. Differences are paired by seed, in points; one no larger than its standard deviation is called
no difference. *Above its line*: by how much the worst sub-network is above the lower of super-net − 0.8 and the
base-net trained alone. What falls short over three seeds or more is printed bold. Networks trained alone have the
setting's epochs, also beside a method that trains longer."""
KINDS = {"top1": "raw", "calibrated": "calibrated"}
NO_PREMISE = """
The premise is not met: the deeper network is no better than the shallower one even alone. So the claims about accuracy
say little here."""


WHOLE, HALF = attrgetter("whole"), attrgetter("half")  # of an outcome: the super-net's name, the base-net's


class Claim(NamedTuple):
    text: str
    label: str  # of the difference
    values: list[float]  # one a seed
    wanted: tuple[str, ...]  # the differences with which it holds; none: nothing is claimed

    @property
    def verdict(self) -> str:
        """Bold where it does not hold."""
        if len(self.values) < 3:
            return UNKNOWN
        mean = fmean(self.values)
        difference = SAME if abs(mean) <= stdev(self.values) else BETTER if mean > 0 else WORSE
        return ("holds: " if difference in self.wanted else "**does not hold**: " if self.wanted else "") + difference


class Outcome:
    """The runs of a setting: accuracies of sub-networks, of one kind, and what a training took, by method and seed."""

    def __init__(self, runs: list[dict[str, Any]], kind: str = "top1") -> None:
        self.runs, self.kind = runs, kind
        self.gmacs = {name: row["gmacs"] for run in runs for name, row in run["subnets"].items()}
        self.whole, self.half = max(self.gmacs, key=self.gmacs.get), min(self.gmacs, key=self.gmacs.get)

    def top1(self, method: str, subnet: str) -> dict[int, float]:
        found = {run["seed"]: run["subnets"].get(subnet) for run in self.runs if run["method"] == method}
        return {seed: row[self.kind] for seed, row in found.items() if row and self.kind in row}

    def worst_between(self, method: str) -> dict[int, float]:
        """By seed, of the sub-networks that are neither the super-net nor the base-net."""
        between = [self.top1(method, name) for name in self.gmacs if name not in (self.whole, self.half)]
        return {seed: min(values[seed] for values in between if seed in values) for seed in between[0]}

    def margins(self, method: str) -> list[float]:
        """By seed, of the worst sub-network, by how much it is above what makes it worth having."""
        every = [self.top1(method, name) for name in self.gmacs]
        ends = self.top1(method, self.whole), self.top1("base", self.half)
        return paired(lambda whole, alone, *top1: min(top1) - min(whole - 0.8, alone), *ends, *every)

    def beside_alone(self, method: str) -> tuple[Claim, Claim, Claim]:
        """What the method's networks are wanted for, instead of those trained alone."""
        label, as_good = "points above the lower of super-net − 0.8 and base-net alone", (BETTER, SAME)
        whole, half = (self.difference((method, s), (alone, s)) for s, alone in self.ends(("super", "base")))
        return (
            Claim("1. The super-net is as good as alone", *whole, as_good),
            Claim("2. The base-net is as good as alone", *half, as_good),
            Claim("3. Every sub-network is of use, the worst", label, self.margins(method), as_good),
        )

    def ends(self, words: tuple[str, str]) -> Iterable[tuple[str, str]]:
        return zip((self.whole, self.half), words, strict=True)

    def difference(self, first: tuple[str, str], second: tuple[str, str]) -> tuple[str, list[float]]:
        """Its label, and its values."""
        values = paired(lambda a, b: a - b, self.top1(*first), self.top1(*second))
        return f"{' '.join(first)} − {' '.join(second)}", values

    def points(self, *methods: str) -> list[dict[str, float]]:
        return [{"gmacs": self.gmacs[name], "top1": top1} for name, top1 in self.means(*methods).items()]

    def means(self, *methods: str) -> dict[str, float]:
        found = [(name, self.top1(method, name).values()) for method in methods for name in self.gmacs]
        return {name: fmean(values) for name, values in found if values}

    def seconds(self, method: str) -> dict[int, float]:
        """On a CPU its time, which other programs do not change."""
        mine = [run for run in self.runs if run["method"] == method]
        return {run["seed"]: run["seconds"]["cpu" if run["device"] == "cpu" else "wall"] for run in mine}

    def claims(self) -> list[Claim]:
        """The premise comes first. One more claim is one more line."""
        whole, half, better = self.whole, self.half, (BETTER,)
        mean = self.means("adn")
        worst = min((name for name in mean if name not in (whole, half)), key=mean.get, default=half)
        lower = min((name for name in mean if name in (whole, half)), key=mean.get, default=half)
        lowest = self.difference(("adn", worst), ("adn", lower))
        questions = (  # of super-net and base-net
            ("4. Self-distillation helps", "adn", "labels", better),
            ("4. Switchable norms help", "adn", "shared-norms", better),
            ("Both", "adn", "labels-shared-norms", ()),
            ("Switchable norms where both learn from the labels", "labels", "labels-shared-norms", ()),
            ("Labels beside self-distillation", "mixed", "adn", ()),
            ("Self-distillation at temperature 4", "warm", "adn", ()),
            ("Distilling features as well", "adn-features", "adn", ()),
            ("One more sub-network a step", "middle", "adn", ()),
            ("One drawn sub-network a step", "drawn", "adn", ()),
            ("ADN twice as long", "adn-longer", "adn", ()),
            ("One drawn at ADN's cost", "drawn-longer", "adn", ()),
        )
        premise = self.difference(("super", whole), ("base", half))
        found = [Claim("Premise: depth pays, in networks trained alone", *premise, better)]
        found += self.beside_alone("adn")
        found.append(Claim("3. No sub-network falls below both trained ones", *lowest, (BETTER, SAME)))
        for text, one, other, wanted in questions:
            for subnet, name in self.ends(("super-net", "base-net")):
                found.append(Claim(f"{text}, {name}", *self.difference((one, subnet), (other, subnet)), wanted))
        seconds = (self.seconds(method) for method in ("adn", "super", "base"))
        saved = paired(lambda both, one, other: 100 * (1 - both / (one + other)), *seconds)
        found.append(Claim("5. One run costs less than two", "% of both individual runs' time saved", saved, better))
        return found[:1] + [claim for claim in found[1:] if claim.values]


def paired(function: Any, *by_seed: dict[int, float]) -> list[float]:
    """The function of several runs' values, for each seed that all of them have."""
    seeds = sorted(set.intersection(*(set(values) for values in by_seed)))
    return [function(*(values[seed] for values in by_seed)) for seed in seeds]


def write(folder: Path, besides: str) -> Path:
    """The page and its pictures, from every grid's results but that with a page of its own, the larger grids first."""
    contents = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    mine = [content for content in contents if content.get("grid", besides) != besides]
    grids = sorted(mine, key=lambda content: (-content["planned"], content["grid"]))
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
            mine = [run for run in runs if run["setting"] == setting]
            outcomes = [Outcome(mine, kind) for kind in KINDS]
            outcomes = [outcome for outcome in outcomes if outcome.means("adn")]
            lines += [f"\n### {setting}\n", *tables(outcomes)]
            picture = folder / f"{name}-{setting}.png"
            if outcomes and draw_outcomes(outcomes, f"{setting}, mean over seeds", picture):
                lines.append(f"\n![{setting}: accuracy over GMACs]({picture.name})")
    with whole_file(page := folder / "method.md") as file:
        file.write(("\n".join(lines) + "\n").encode())
    return page


def draw_outcomes(outcomes: list[Outcome], title: str, path: Path) -> bool:
    """ADN's sub-networks, the last kind filled; beside them the other kind, and the two networks trained alone."""
    *raw, shown = outcomes
    others = {f"ADN, {KINDS[outcome.kind]}": outcome.points("adn") for outcome in raw}
    others |= {"trained alone": shown.points("super", "base"), "drawn": shown.points("drawn")}
    rows = [Row(name, shown.gmacs[name], 0, None, top1, 0) for name, top1 in shown.means("adn").items()]
    return draw(
        rows, f"{title}, {KINDS[shown.kind]}", path, {name: points for name, points in others.items() if points}
    )


def tables(outcomes: list[Outcome]) -> list[str]:
    """What the methods came to, and the claims: both for each kind of accuracies that there is."""
    kinds = [KINDS[outcome.kind] for outcome in outcomes]
    columns = [f"{what}, {kind}" for what in ("super-net", "base-net", "worst between") for kind in kinds]
    lines = [f"| training | seeds | {' | '.join(columns)} | time of a run (super-net alone = 1) |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for method, (title, *_) in METHODS.items():
        if seconds := outcomes[0].seconds(method):
            top1 = [mean(o.top1(method, net(o)).values()) for net in (WHOLE, HALF) for o in outcomes]
            top1 += [mean(outcome.worst_between(method).values()) for outcome in outcomes]
            times = mean(paired(lambda run, alone: run / alone, seconds, outcomes[0].seconds("super")))
            lines.append(f"| {title} | {len(seconds)} | {' | '.join(top1)} | {times} |")
    lines += beside_alone(outcomes)
    lines += ["", *verdicts("claim | measured", {KINDS[outcome.kind]: outcome.claims() for outcome in outcomes})]
    return [*lines, NO_PREMISE] if outcomes[-1].claims()[0].verdict.startswith("**") else lines


def beside_alone(outcomes: list[Outcome]) -> list[str]:
    """How the networks of each method stand beside those trained alone."""
    kinds = [KINDS[outcome.kind] for outcome in outcomes]
    heads = [
        f"{what}, {kind}" for what in ("super-net − alone", "base-net − alone", "above its line") for kind in kinds
    ]
    lines = ["", f"| training | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for method in [method for method in METHODS if method not in ("super", "base")]:
        claims = list(zip(*(outcome.beside_alone(method) for outcome in outcomes), strict=True))
        if any(claim.values for of_one in claims for claim in of_one):
            cells = [bold(mean(claim.values, "+"), claim.verdict) for of_one in claims for claim in of_one]
            lines.append(f"| {METHODS[method].title} | {' | '.join(cells)} |")
    return lines if len(lines) > 3 else []


def bold(text: str, verdict: str) -> str:
    return f"**{text}**" if verdict.startswith("**") else text


def verdicts(heads: str, asked: dict[str, list[Claim]]) -> list[str]:
    """The same claims, asked of each kind of accuracies."""
    lines = [f"| {heads} | {' | '.join(f'{kind} | verdict' for kind in asked)} |"]
    lines.append("|---" * (2 + 2 * len(asked)) + "|")
    for claims in zip(*asked.values(), strict=True):
        found = " | ".join(f"{mean(claim.values, '+')} | {claim.verdict}" for claim in claims)
        lines.append(f"| {claims[0].text} | {claims[0].label} | {found} |")
    return lines


def mean(values: Collection[float], sign: str = "") -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.2f}{spread}" if values else "–"
