"""What a profiled device would hold under a load: attainment of deadlines and mean accuracy of the governor's policies.

    python -m deploy.simulate profile.json --target-ms 60 --rate 150 --cv2 4          bursts by chance
    python -m deploy.simulate profile.json --target-ms 60 --steps 2:80 2:300          2 s of 80/s and of 300/s by turns
    python -m deploy.simulate profile.json --target-ms 60 --trace arrivals.txt        a line per request: its second

One worker. A batch takes a time drawn from its measured quantiles. The same seed gives the same numbers.
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np

from deploy.arrivals import Load, flags
from deploy.command import command
from deploy.governor import Governor, Option
from deploy.profile import Profile
from deploy.report import Batch, Outcome, report
from utils.errors import UserError


def simulate(times: np.ndarray, target: float, governor: Governor, duration: Callable[[Option, int], float]) -> Outcome:
    """Run the governor on these arrivals; `duration` says how long so many images take."""
    outcome, due = Outcome(target, times), [*times.tolist(), float("inf")]
    now, following = 0.0, 0
    while True:
        decision = governor.decide(now)
        governor.refused(now)
        if decision:
            option, requests = decision.option, decision.requests
            outcome.batches.append(Batch(now, option.subnet, len(requests), len(governor)))
            took = duration(option, len(requests))
            now += took
        elif following < len(times):
            now = due[following]
        else:
            outcome.slower = governor.slower
            return outcome
        while due[following] <= now:
            governor.submit(following, due[following] + target, due[following])
            following += 1
        if decision:
            for request in governor.finish(decision, took):
                outcome.finished[request], outcome.accuracy[request] = now, option.accuracy


class Durations:
    """Seconds of a batch, drawn from the profile's quantiles; between two measured sizes in proportion."""

    def __init__(self, profile: Profile, way: str, seed: int) -> None:
        finest = (np.arange(256) + 0.5) / 256
        sizes: dict[str, dict[int, np.ndarray]] = {}
        for row in profile.of(way):
            at = [int(quantile) / 100 for quantile in row.ms]
            sizes.setdefault(row.subnet, {})[row.batch] = np.interp(finest, at, list(row.ms.values())) / 1000
        self.seconds = {}
        for subnet, known in sizes.items():
            measured = sorted(known)
            for size in range(1, measured[-1] + 1):
                place = np.interp(size, measured, range(len(measured)))
                low, high = (known[measured[int(f(place))]] for f in (np.floor, np.ceil))
                self.seconds[subnet, size] = (low + (high - low) * (place % 1)).tolist()
        self.drawn = np.random.default_rng(seed).integers(256, size=1 << 16).tolist()
        self.count = 0

    def __call__(self, option: Option, images: int) -> float:
        self.count += 1
        return self.seconds[option.subnet, images][self.drawn[self.count % len(self.drawn)]]


def simulated(load: Load) -> dict[str, Outcome]:
    """By policy; each begins with the same draws."""
    args = load.args
    made = {policy: Durations(load.profile, args.way, args.seed) for policy in load.policies}
    return {policy: simulate(load.times, load.target, load.governor(policy), d) for policy, d in made.items()}


def run(args: argparse.Namespace, others: list[str]) -> str:
    if others:
        raise UserError(f"unknown argument {others[0]}")
    load = Load(args)
    return report(load, {"simulated": simulated(load)}, "simulate")


def main(argv: list[str] | None = None) -> int:
    return command("deploy.simulate", __doc__, flags, run, argv)


if __name__ == "__main__":
    sys.exit(main())
