"""What a profiled device would hold under a load: attainment of deadlines and mean accuracy of the governor's policies.

    python -m deploy.simulate profile.json --target-ms 60 --rate 150 --cv2 4          bursts by chance
    python -m deploy.simulate profile.json --target-ms 60 --steps 2:80 2:300          2 s of 80/s and of 300/s by turns
    python -m deploy.simulate profile.json --target-ms 60 --trace arrivals.txt        a line per request: its second

One worker. A device that is slow for a while, since it grows hot or others use it, was so when it was profiled: what
runs meanwhile takes as much longer as calls did then. The same seed gives the same numbers.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from deploy.arrivals import Load, flags
from deploy.command import command
from deploy.governor import Governor, Option
from deploy.profile import Means, Profile
from deploy.report import Batch, Outcome, report
from utils.errors import UserError

Duration = Callable[[Option, int, float], float]  # seconds that so many images take from now on


def simulate(outcome: Outcome, governor: Governor, duration: Duration, part: range) -> None:
    """Run the governor on these of the requests, until all are answered or refused."""
    due = [*outcome.arrived[part.start : part.stop].tolist(), float("inf")]
    now, following = due[0], 0
    while True:
        decision = governor.decide(now)
        governor.refused(now)
        if decision:
            option, requests = decision.option, decision.requests
            took = duration(option, len(requests), now)
            outcome.batches.append(Batch(now, option.subnet, len(requests), len(governor), took))
            now += took
        elif following < len(part):
            now = due[following]
        else:
            return
        while due[following] <= now:
            governor.submit(part[following], due[following] + outcome.target, due[following])
            following += 1
        if decision:
            for request in governor.finish(decision, took):
                outcome.finished[request], outcome.accuracy[request] = now, option.accuracy


class Pace:
    """How much of its work a device had done at which time: it is now slower, now quicker. Behind its end it repeats.

    Work is the time that it takes in the mean by the profile; waiting counts as if it were work.
    """

    def __init__(self, work: np.ndarray, times: np.ndarray, start: float = 0.0) -> None:
        self.work, self.times, self.start = work, times, start

    @classmethod
    def of_profile(cls, profile: Profile, way: str, seed: int) -> "Pace":
        """As the calls found it that took turns there; the seed draws with which of them it begins."""
        took = np.array([row.times for row in profile.of(way)]).T / 1000
        work = np.broadcast_to(took.mean(axis=0), took.shape)
        work, times = (np.concatenate([[0.0], np.cumsum(seconds)]) for seconds in (work, took))
        return cls(work, times, np.random.default_rng(seed).uniform(0, times[-1]))

    def seconds(self, work: float, now: float) -> float:
        """That so much work takes from now on."""
        now += self.start
        done = _onward(now, self.times, self.work)
        return _onward(done + work, self.work, self.times) - now


def _onward(at: float, known: np.ndarray, values: np.ndarray) -> float:
    rounds, rest = divmod(at, known[-1])
    return float(rounds * values[-1] + np.interp(rest, known, values))


def as_profiled(load: Load) -> dict[str, Outcome]:
    """By policy."""
    means, pace = load.profile.means(load.args.way), Pace.of_profile(load.profile, load.args.way, load.args.seed)
    found = {policy: Outcome(load.target, load.times) for policy in load.policies}
    for policy, outcome in found.items():
        simulate(outcome, load.governor(policy), partial(_duration, means, pace), range(len(load.times)))
    return found


def _duration(means: Means, pace: Pace, option: Option, images: int, now: float) -> float:
    return pace.seconds(means[option.subnet, images], now)


def run(args: argparse.Namespace, others: list[str]) -> str:
    if others:
        raise UserError(f"unknown argument {others[0]}")
    load = Load(args)
    return report(load, {"simulated": as_profiled(load)}, "simulate")


def main(argv: list[str] | None = None) -> int:
    return command("deploy.simulate", __doc__, flags, run, argv)


if __name__ == "__main__":
    sys.exit(main())
