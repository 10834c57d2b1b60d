"""What a profiled device would hold under a load: attainment of deadlines and mean accuracy of the governor's policies.

    python -m deploy.simulate profile.json --target-ms 60 --rate 150 --cv2 4          bursts by chance
    python -m deploy.simulate profile.json --target-ms 60 --steps 2:80 2:300          2 s of 80/s and of 300/s by turns
    python -m deploy.simulate profile.json --target-ms 60 --trace arrivals.txt        a line per request: its second

One worker. A device that is slow for a while, since it grows hot or others use it, was so when it was profiled: batches
take their mean times, stretched as the profile's calls were, one after another. The same seed gives the same numbers.
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

Duration = Callable[[Option, int, float], float]  # seconds that so many images take from now on


def simulate(times: np.ndarray, target: float, governor: Governor, duration: Duration) -> Outcome:
    """Run the governor on these arrivals."""
    outcome, due = Outcome(target, times), [*times.tolist(), float("inf")]
    now, following = 0.0, 0
    while True:
        decision = governor.decide(now)
        governor.refused(now)
        if decision:
            option, requests = decision.option, decision.requests
            took = duration(option, len(requests), now)
            outcome.batches.append(Batch(now, option.subnet, len(requests), len(governor), took))
            now += took
        elif following < len(times):
            now = due[following]
        else:
            return outcome
        while due[following] <= now:
            governor.submit(following, due[following] + target, due[following])
            following += 1
        if decision:
            for request in governor.finish(decision, took):
                outcome.finished[request], outcome.accuracy[request] = now, option.accuracy


class Durations:
    """What batches take, one after another: their mean times, on a device that is now slower and now quicker.

    It is so as the profile's calls found it: so much work took so much time, and the time between batches passes as if
    there were work. The profile begins again where it ends; `seed` draws where in it the first batch stands.
    """

    def __init__(self, profile: Profile, way: str, seed: int) -> None:
        self.means = profile.means(way)
        took = np.array([row.times for row in profile.of(way)]).T  # round by round, as the calls took turns
        work = np.broadcast_to(took.mean(axis=0), took.shape)
        self.took, self.work = (np.concatenate([[0.0], np.cumsum(ms)]) / 1000 for ms in (took, work))
        self.done = np.random.default_rng(seed).uniform(0, self.work[-1])
        self.free = 0.0  # since then

    def __call__(self, option: Option, images: int, now: float) -> float:
        start = self.done + now - self.free
        self.done = start + self.means[option.subnet, images]
        took = self._time(self.done) - self._time(start)
        self.free = now + took
        return took

    def _time(self, work: float) -> float:
        rounds, rest = divmod(work, self.work[-1])
        return float(rounds * self.took[-1] + np.interp(rest, self.work, self.took))


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
