"""The paper's claims, asked of one setting's runs: paired differences over seeds, and what follows from them, plainly.

Two runs of the same seed are compared, then the seeds' differences are averaged; the spread is their standard
deviation. A difference no larger than its spread is called no difference.
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

FEWEST = 3  # seeds for any claim
BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference", "too few seeds"
PREMISE = "Premise: depth pays, in networks trained alone"


class Claim(NamedTuple):
    text: str
    label: str  # of the difference
    values: Sequence[float]  # one a seed
    wanted: tuple[str, ...] = (BETTER,)  # the differences with which it holds; none: nothing is claimed

    def __str__(self) -> str:
        spread = f" ± {statistics.stdev(self.values):.2f}" if len(self.values) > 1 else ""
        return f"{statistics.fmean(self.values):+.2f}{spread}" if self.values else "–"

    @property
    def difference(self) -> str:
        if len(self.values) < FEWEST:
            return UNKNOWN
        mean = statistics.fmean(self.values)
        return SAME if abs(mean) <= statistics.stdev(self.values) else BETTER if mean > 0 else WORSE

    @property
    def verdict(self) -> str:
        if self.difference == UNKNOWN or not self.wanted:
            return self.difference
        return f"{'holds' if self.difference in self.wanted else '**does not hold**'}: {self.difference}"


class Setting:
    """The runs of a setting: accuracies of sub-networks by method and seed, and what a run took."""

    def __init__(self, runs: Sequence[dict[str, Any]]) -> None:
        self.runs = {(run["method"], run["seed"]): run for run in runs}
        self.gmacs = {name: row["gmacs"] for run in runs for name, row in run["subnets"].items()}
        self.whole, self.half = max(self.gmacs, key=self.gmacs.get), min(self.gmacs, key=self.gmacs.get)

    def top1(self, method: str, subnet: str) -> dict[int, float]:
        """By seed."""
        rows = {seed: run["subnets"].get(subnet) for (name, seed), run in self.runs.items() if name == method}
        return {seed: row["top1"] for seed, row in rows.items() if row}

    def seconds(self, method: str) -> dict[int, float]:
        """Of training. On a CPU its time, which other programs do not change."""
        mine = {seed: run for (name, seed), run in self.runs.items() if name == method}
        return {seed: run["seconds"]["cpu" if run["device"] == "cpu" else "wall"] for seed, run in mine.items()}

    def claims(self) -> list[Claim]:
        """One more claim is one more line."""
        whole, half, as_good = self.whole, self.half, (BETTER, SAME)
        mean = {name: statistics.fmean(self.top1("adn", name).values() or [0]) for name in self.gmacs}
        worst = min((name for name in mean if name not in (whole, half)), key=mean.get, default=half)
        lower = min((whole, half), key=mean.get)
        rows = [
            (PREMISE, ("super", whole), ("base", half), (BETTER,)),
            ("1. The super-net is as good as alone", ("adn", whole), ("super", whole), as_good),
            ("2. The base-net is as good as alone", ("adn", half), ("base", half), as_good),
            ("3. No sub-network falls below both trained ones", ("adn", worst), ("adn", lower), as_good),
            ("4. Self-distillation helps the super-net", ("adn", whole), ("labels", whole), (BETTER,)),
            ("4. Self-distillation helps the base-net", ("adn", half), ("labels", half), (BETTER,)),
            ("4. Switchable norms help the super-net", ("adn", whole), ("shared-norms", whole), (BETTER,)),
            ("4. Switchable norms help the base-net", ("adn", half), ("shared-norms", half), (BETTER,)),
            ("Both, super-net", ("adn", whole), ("labels-shared-norms", whole), ()),
            ("Both, base-net", ("adn", half), ("labels-shared-norms", half), ()),
            ("Distilling features as well, super-net", ("adn-features", whole), ("adn", whole), ()),
            ("Distilling features as well, base-net", ("adn-features", half), ("adn", half), ()),
        ]
        claims = []
        for text, first, second, wanted in rows:
            one, other = self.top1(*first), self.top1(*second)
            label = f"{' '.join(first)} − {' '.join(second)}"
            claims.append(Claim(text, label, [one[seed] - other[seed] for seed in sorted(one.keys() & other)], wanted))
        adn, alone, base = (self.seconds(method) for method in ("adn", "super", "base"))
        saved = [100 * (1 - adn[seed] / (alone[seed] + base[seed])) for seed in sorted(adn.keys() & alone & base)]
        claims.append(Claim("5. One run costs less than two", "% of both individual runs' time that ADN saves", saved))
        return [claim for claim in claims if claim.values or claim.text == PREMISE]
