"""What is asked of the runs of the grid `systems`: depth, widths, a gate and resolutions, paired by seed."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.reproduce.grids import GRIDS, Run
from benchmarks.reproduce.page import BETTER, SAME, Claim, paired

GRID = "systems"
Values = dict[int, float]  # by seed


class Outcome:
    """The runs of a setting, with accuracies of one kind."""

    def __init__(self, runs: list[dict[str, Any]], kind: str) -> None:
        self.kind = kind
        self.runs = {(run["method"], run["seed"]): run["subnets"] for run in runs}
        setting = next(run.setting for run in GRIDS[GRID].runs if run.setting.name == runs[0]["setting"])
        self.titles = {method: Run(setting, method, 0).title for method, _ in self.runs}

    def values(self, method: str, subnet: str, what: str | None = None) -> Values:
        """The accuracy, or whatever a result has by this name."""
        mine = {seed: found for (name, seed), found in self.runs.items() if name == method}
        return {seed: found[subnet][what or self.kind] for seed, found in mine.items() if subnet in found}

    def subnets(self, method: str) -> list[str]:
        """From the dearest to the cheapest."""
        found = next((subnets for (name, _), subnets in self.runs.items() if name == method), {})
        return sorted(found, key=lambda subnet: -found[subnet]["gmacs"])

    def at(self, method: str, gmacs: Values) -> Values:
        """What the method's sub-networks have at this cost, on the lines between them."""
        found = {}
        for seed in gmacs.keys() & {seed for name, seed in self.runs if name == method}:
            points = sorted((row["gmacs"], row[self.kind]) for row in self.runs[method, seed].values())
            found[seed] = float(np.interp(gmacs[seed], *zip(*points, strict=True)))
        return found


def compared(text: str, label: str, ours: Values, theirs: Values, *wanted: str) -> Claim:
    return Claim(text, label, paired(lambda a, b: a - b, ours, theirs), wanted)


def about_the_largest(outcome: Outcome) -> Iterator[Claim]:
    plain = outcome.values("plain", "FFF")
    for method in ("adn", "drawn", "slimmable", "sandwich", "san"):
        for name in outcome.subnets(method)[:1]:
            label = f"{method} {name} − plain"
            yield compared("The largest is as good as alone", label, outcome.values(method, name), plain, BETTER, SAME)


def about_depth(outcome: Outcome) -> Iterator[Claim]:
    names = outcome.subnets("adn")
    if not names:
        return
    whole, base = names[0], names[-1]
    alone = outcome.values("base", base)
    for method in ("adn", "drawn"):
        label = f"{method} {base} − base alone"
        yield compared("The base-net is as good as alone", label, outcome.values(method, base), alone, BETTER, SAME)
        label = f"{method}, the worst − the lower of super-net − 0.8 and base alone"
        every = [outcome.values(method, name) for name in names]
        margins = paired(lambda alone, *top1: min(top1) - min(top1[0] - 0.8, alone), alone, *every)
        yield Claim("Every depth is of use", label, margins, (BETTER, SAME))
    for name in (whole, base):
        ours, theirs = (outcome.values(method, name) for method in ("adn", "labels"))
        yield compared("Self-distillation helps depth", f"adn {name} − labels", ours, theirs, BETTER)
    for method in ("drawn", "slimmable", "sandwich", "san"):
        label = f"adn {base} − {method} at its MACs"
        theirs = outcome.at(method, outcome.values("adn", base, "gmacs"))
        yield compared("Depth beside the others, at the base-net's cost", label, outcome.values("adn", base), theirs)


def about_widths(outcome: Outcome) -> Iterator[Claim]:
    for method in ("slimmable", "sandwich"):
        for wide, narrow in pairwise(outcome.subnets(method)):
            ours, theirs = (outcome.values(method, width) for width in (wide, narrow))
            yield compared("Wider is as good or better", f"{method} {wide} − {narrow}", ours, theirs, BETTER, SAME)
    for width in outcome.subnets("sandwich")[1:-1]:
        least = {seed: raw + 10 for seed, raw in outcome.values("sandwich", width, "top1").items()}
        label = f"sandwich {width} − (raw + 10)"
        yield compared("Calibration brings ten points", label, outcome.values("sandwich", width), least, BETTER)
    for method, without in (("sandwich", "sandwich-labels"), ("slimmable-distilled", "slimmable")):
        for width in outcome.subnets(method):
            ours, theirs = (outcome.values(name, width) for name in (method, without))
            yield compared("In-place distillation helps", f"{method} {width} − {without}", ours, theirs, BETTER)


def about_gates(outcome: Outcome) -> Iterator[Claim]:
    for method in ("gate", "gate-corrected"):
        uniform, label = outcome.at("dsnet", outcome.values(method, "gate", "gmacs")), f"{method} − dsnet at its MACs"
        yield compared("A gate beats one width for all images", label, outcome.values(method, "gate"), uniform, BETTER)
    official, corrected = (outcome.values(method, "gate") for method in ("gate", "gate-corrected"))
    yield compared("The gate's loss without its slips", "gate-corrected − gate", corrected, official)


def about_resolutions(outcome: Outcome) -> Iterator[Claim]:
    for number, size in enumerate(outcome.subnets("san")):
        at, alone = (outcome.values(f"plain-{how}-{number}" if number else "plain", "FFF") for how in ("at", "of"))
        ours, label = outcome.values("san", size), f"san {size} − plain"
        if number:
            yield compared("It beats one plain network at other sizes", f"{label} at {size}", ours, at, BETTER)
        yield compared("It is as good as one for each size", f"{label} of {size}", ours, alone, BETTER, SAME)


QUESTIONS = (about_the_largest, about_depth, about_widths, about_gates, about_resolutions)
