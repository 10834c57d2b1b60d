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
        return f"{self.mean:+.2f} ± {self.spread:.2f}"


@dataclass(frozen=True)
class Claim:
    number: int
    text: str
    differences: tuple[Difference, ...]
    holds: str  # yes | no | in part | too few seeds


class Accuracies:
    """Top-1 of the sub-networks of one setting's runs, by method and seed."""

    def __init__(self, runs: Iterable[dict[str, Any]], setting: str) -> None:
        self.runs = {(run["method"], run["seed"]): run["subnets"] for run in runs if run["setting"] == setting}

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


def super_and_base(names: Sequence[str]) -> tuple[str, str]:
    """All F and all T, with as many stages as the names have."""
    stages = len(names[0]) if names else 4
    return "F" * stages, "T" * stages


def claims(results: dict[str, Any], setting: str) -> list[Claim]:
    """Those of the five that the setting's results speak about."""
    accuracies = Accuracies(results["runs"], setting)
    times = next((entry["milliseconds"] for entry in results.get("steps", []) if entry["setting"] == setting), None)
    found = [at_least_as_good(accuracies), base_as_good(accuracies), graceful(accuracies)]
    if accuracies.seeds("labels"):
        found.append(both_needed(accuracies))
    if times and {"adn", "super", "base"} <= times.keys():
        found.append(cheaper(times))
    return found


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


def cheaper(milliseconds: dict[str, list[float]]) -> Claim:
    """Rounds of steps that took turns take the part of seeds: per cent of the two individual steps that are saved."""
    rounds = zip(*(milliseconds[method] for method in ("adn", "super", "base")), strict=True)
    saved = tuple(100 * (1 - adn / (whole + half)) for adn, whole, half in rounds)
    difference = Difference("saved by one ADN step, % of a super-net's and a base-net's", saved)
    text = "One ADN run costs less than the two individual runs"
    holds = {BETTER: "yes", UNKNOWN: UNKNOWN}.get(difference.verdict, "no")
    return Claim(5, text, (difference,), holds)


def ratios(milliseconds: dict[str, list[float]], to: str = "super") -> dict[str, tuple[float, float]]:
    """Median and half the range between the quartiles of each method's step time over that of `to`, round by round."""
    return {
        method: _middle([a / b for a, b in zip(times, milliseconds[to], strict=True)])
        for method, times in milliseconds.items()
    }


def _middle(values: Sequence[float]) -> tuple[float, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return middle, (high - low) / 2


def _not_worse(difference: Difference) -> str:
    return {UNKNOWN: UNKNOWN, WORSE: "no"}.get(difference.verdict, "yes")


def _share(answers: Sequence[bool]) -> str:
    return "yes" if all(answers) else "in part" if any(answers) else "no"
