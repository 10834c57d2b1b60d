"""The paper's claims, answered from results: a difference, its spread over seeds, and what follows from the two.

Differences are paired: two runs of the same seed are compared, then the seeds' differences are averaged. The spread is
their standard deviation. A difference no larger than its spread is called no difference.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

FEWEST = 3  # seeds for any claim
PREMISE = 0  # its number among the claims
BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference", "too few seeds"


@dataclass(frozen=True)
class Difference:
    """Of paired values, in percentage points (or another unit, if said)."""

    label: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def verdict(self) -> str:
        if len(self.values) < FEWEST:
            return UNKNOWN
        if abs(self.mean) <= self.spread:
            return SAME
        return BETTER if self.mean > 0 else WORSE

    def __str__(self) -> str:
        if not self.values:
            return "–"
        return f"{self.mean:+.2f}" + (f" ± {self.spread:.2f}" if len(self.values) > 1 else "")


@dataclass(frozen=True)
class Claim:
    number: int
    text: str
    differences: tuple[Difference, ...]
    holds: str  # yes | no | in part | too few seeds


class Accuracies:
    """Top-1 of the sub-networks of one setting's runs, by method and seed; and what the runs took."""

    def __init__(self, runs: Iterable[dict[str, Any]], setting: str) -> None:
        mine = {(run["method"], run["seed"]): run for run in runs if run["setting"] == setting}
        self.runs = {key: run["subnets"] for key, run in mine.items()}
        self.seconds = {key: _seconds(run) for key, run in mine.items()}

    def times(self, method: str, to: str = "super") -> list[float]:
        """Of whole training runs, over those of another method with the same seed."""
        both = [seed for seed in self.seeds(method) if (to, seed) in self.runs]
        return [self.seconds[method, seed] / self.seconds[to, seed] for seed in both]

    def saved(self) -> list[float]:
        """Per cent of the time of the two individual runs, by seed, where there are all three."""
        seeds = [seed for seed in self.seeds("adn") if {("super", seed), ("base", seed)} <= self.runs.keys()]
        return [
            100 * (1 - self.seconds["adn", seed] / (self.seconds["super", seed] + self.seconds["base", seed]))
            for seed in seeds
        ]

    def seeds(self, method: str) -> list[int]:
        return sorted(seed for name, seed in self.runs if name == method)

    def of(self, method: str, subnet: str) -> dict[int, float]:
        """By seed."""
        found = {seed: self.runs[method, seed].get(subnet) for seed in self.seeds(method)}
        return {seed: row["top1"] for seed, row in found.items() if row}

    def names(self, method: str) -> list[str]:
        """Of the sub-networks that every run of the method has."""
        runs = [self.runs[method, seed] for seed in self.seeds(method)]
        return [name for name in runs[0] if all(name in run for run in runs)] if runs else []

    def difference(self, label: str, first: tuple[str, str], second: tuple[str, str]) -> Difference:
        """Of two (method, sub-network), over the seeds that both have."""
        left, right = self.of(*first), self.of(*second)
        return Difference(label, tuple(left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())))


def _seconds(run: dict[str, Any]) -> float:
    """Processor time where that is what the work costs: another program on the machine does not change it."""
    return run["seconds"]["cpu" if run["device"] == "cpu" else "wall"]


def super_and_base(names: Sequence[str]) -> tuple[str, str]:
    """All F and all T, with as many stages as the names have."""
    stages = len(names[0]) if names else 4
    return "F" * stages, "T" * stages


def claims(results: dict[str, Any], setting: str) -> list[Claim]:
    """Those of the five that the setting's results speak about, after their premise."""
    accuracies = Accuracies(results["runs"], setting)
    timed = [entry["milliseconds"] for entry in results["steps"] if entry["setting"] == setting]
    found = [premise(accuracies), at_least_as_good(accuracies), base_as_good(accuracies), graceful(accuracies)]
    if accuracies.seeds("labels"):
        found.append(both_needed(accuracies))
    found.append(cheaper(accuracies, timed))
    return found


def premise(accuracies: Accuracies) -> Claim:
    """Without it a setting is none to test the paper in: its networks are too small, or trained too little."""
    whole, half = super_and_base(accuracies.names("adn"))
    difference = accuracies.difference("super-net alone - base-net alone", ("super", whole), ("base", half))
    holds = {BETTER: "yes", UNKNOWN: UNKNOWN}.get(difference.verdict, "no")
    return Claim(PREMISE, "Premise: depth pays, in networks trained alone", (difference,), holds)


def at_least_as_good(accuracies: Accuracies) -> Claim:
    whole, _ = super_and_base(accuracies.names("adn"))
    difference = accuracies.difference("super-net of ADN - super-net alone", ("adn", whole), ("super", whole))
    return Claim(
        1, "The super-net is at least as good as the network trained alone", (difference,), _not_worse(difference)
    )


def base_as_good(accuracies: Accuracies) -> Claim:
    _, half = super_and_base(accuracies.names("adn"))
    difference = accuracies.difference("base-net of ADN - base-net alone", ("adn", half), ("base", half))
    return Claim(
        2, "The base-net is at least as good as the base network trained alone", (difference,), _not_worse(difference)
    )


def graceful(accuracies: Accuracies) -> Claim:
    """The worst sub-network nobody trained, against the lower of the two that were; early against late skips."""
    names = accuracies.names("adn")
    whole, half = super_and_base(names)
    mean = {name: statistics.fmean(accuracies.of("adn", name).values()) for name in names}
    between = [name for name in names if name not in (whole, half)]
    text = "The sub-networks between degrade gracefully: none falls below both trained ones"
    if not between:
        return Claim(3, text, (), UNKNOWN)
    worst = min(between, key=mean.__getitem__)
    floor = min((whole, half), key=mean.__getitem__)
    early, late = "T" + whole[1:], whole[:-1] + "T"
    differences = (
        accuracies.difference(
            f"worst of the {len(between)} between ({worst}) - {floor}", ("adn", worst), ("adn", floor)
        ),
        accuracies.difference(f"skip early ({early}) - skip late ({late})", ("adn", early), ("adn", late)),
    )
    return Claim(3, text, differences, _not_worse(differences[0]))


def both_needed(accuracies: Accuracies) -> Claim:
    """Each ingredient must make the super-net or the base-net better, and neither of them worse."""
    whole, half = super_and_base(accuracies.names("adn"))
    differences, answers = [], []
    for method, name in (
        ("labels", "self-distillation"),
        ("shared-norms", "switchable norms"),
        ("labels-shared-norms", "both"),
    ):
        pair = [
            accuracies.difference(f"ADN - without {name}, {net}", ("adn", subnet), (method, subnet))
            for net, subnet in (("super-net", whole), ("base-net", half))
        ]
        differences += pair
        if name != "both":
            answers.append({difference.verdict for difference in pair})
    needed = [BETTER in answer and WORSE not in answer for answer in answers]
    holds = UNKNOWN if any(UNKNOWN in answer for answer in answers) else _share(needed)
    return Claim(4, "Self-distillation and switchable norms are both needed", tuple(differences), holds)


def features(accuracies: Accuracies) -> tuple[Difference, ...]:
    """What distilling features as well brings. No claim hangs on it."""
    nets = zip(("super-net", "base-net"), super_and_base(accuracies.names("adn")), strict=True)
    return tuple(
        accuracies.difference(f"outputs + features - outputs only, {net}", ("adn-features", name), ("adn", name))
        for net, name in nets
    )


Rounds = dict[str, list[float]]  # method → milliseconds of its step, round by round


def cheaper(accuracies: Accuracies, timed: Sequence[Rounds]) -> Claim:
    """Per cent that ADN saves, one number per seed. Whole runs decide; steps alone, if timed, stand beside them."""
    runs = Difference("% of the time of both individual runs that one ADN run saves", tuple(accuracies.saved()))
    steps = tuple(100 * (1 - _ratio(rounds, "adn", ("super", "base"))) for rounds in timed)
    differences = (runs, *([Difference("the same for training steps alone", steps)] if steps else []))
    holds = {BETTER: "yes", UNKNOWN: UNKNOWN}.get(runs.verdict, "no")
    return Claim(5, "One ADN run costs less than the two individual runs", differences, holds)


def ratios(timed: Sequence[Rounds]) -> dict[str, list[float]]:
    """Each method's step time over that of the super-net alone, one number per seed."""
    return {method: [_ratio(rounds, method, ("super",)) for rounds in timed] for method in timed[0]}


def _ratio(rounds: Rounds, method: str, to: Sequence[str]) -> float:
    """Median over the rounds, in which the steps took turns."""
    others = zip(*(rounds[other] for other in to), strict=True)
    return statistics.median(a / sum(b) for a, b in zip(rounds[method], others, strict=True))


def _not_worse(difference: Difference) -> str:
    return {UNKNOWN: UNKNOWN, WORSE: "no"}.get(difference.verdict, "yes")


def _share(answers: Sequence[bool]) -> str:
    return "yes" if all(answers) else "in part" if any(answers) else "no"
