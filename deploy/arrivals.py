"""What comes, and what is asked of the device: requests by rate, burstiness and steps, or as a trace has them.

The simulated and the real device get the same flags, and from them the same `Load`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploy.governor import POLICIES, Governor
from deploy.profile import Profile
from utils.errors import UserError
from utils.flags.parsing import NATURAL, NONNEGATIVE, POSITIVE, bounded


def arrivals(steps: Sequence[tuple[float, float]], seconds: float, cv2: float, seed: int) -> np.ndarray:
    """Times of requests: (seconds, rate) by turns, gaps gamma distributed with this squared coefficient of variation.

    CV² 1 is a Poisson process, 0 a metronome. A step's rate stretches the same gaps.
    """
    times, counts = [0.0], [0.0]  # expected requests up to a time
    while times[-1] < seconds:
        for length, rate in steps:
            times.append(times[-1] + length)
            counts.append(counts[-1] + length * rate)
    random, due = np.random.default_rng(seed), np.zeros(1)
    while due[-1] < counts[-1]:
        more = int(counts[-1] - due[-1]) + 100
        gaps = random.gamma(1 / cv2, cv2, more) if cv2 else np.ones(more)
        due = np.concatenate([due, due[-1] + np.cumsum(gaps)])
    found = np.interp(due[1:], counts, times)
    return found[found < min(seconds, times[-1])]


def trace(path: Path) -> np.ndarray:
    """Times of requests from a file, the first at 0."""
    try:
        times = np.sort(np.array([float(line) for line in path.read_text().split()]))
        if not np.isfinite(times).all():
            raise ValueError(f"it holds {times[-1]}")
    except OSError as error:
        raise UserError(f"--trace {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--trace {path}: a number of seconds per line is wanted ({error})") from None
    return times - times[:1]


def flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("profile", type=Path, help="that `python -m deploy.profile --evaluation subnets.json` wrote")
    add("--way", default="eager", help="of running: one that was profiled (default: eager)")
    add("--target-ms", type=POSITIVE, required=True, metavar="MS", help="a request's deadline after its arrival")
    add("--rate", type=POSITIVE, default=100.0, help="requests a second (default: 100)")
    add("--steps", type=_step, nargs="+", metavar="S:RATE", help="instead: S seconds of a rate, by turns")
    add("--cv2", type=NONNEGATIVE, default=1.0, help="burstiness, CV² of the gaps; 1: Poisson, 0: even (default: 1)")
    add("--trace", type=Path, metavar="FILE", help="instead: arrivals from a file, a second per line")
    add("--seconds", type=POSITIVE, default=20.0, metavar="S", help="how long (default: 20)")
    add("--seed", type=NATURAL, default=0, metavar="N", help="of arrivals and durations (default: 0)")
    named = f"{', '.join(POLICIES)}, or a sub-network's name, which then always runs (default: all)"
    add("--policies", nargs="+", metavar="NAME", help=named)
    slowest = "how many times slower than its profile the device may be found to be (default: 4; 1: as profiled)"
    add("--slowest", type=bounded(float, 1), default=4.0, metavar="X", help=slowest)
    add("--late", action="store_true", help="serve late what cannot be met, instead of refusing it")
    add("-o", "--output-dir", type=Path, default=Path(), metavar="DIR", help="for numbers and picture (default: here)")


def _step(text: str) -> tuple[float, float]:
    seconds, _, rate = text.partition(":")
    return POSITIVE(seconds), NONNEGATIVE(rate)


class Load:
    """What the flags ask for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.profile, self.target = args, Profile.read(args.profile), args.target_ms / 1000
        self.options = self.profile.options(args.way)
        self.policies = args.policies or [*POLICIES, *dict.fromkeys(option.subnet for option in self.options)]
        steps = args.steps or [(args.seconds, args.rate)]
        if not any(rate for _, rate in steps):
            raise UserError("--steps: one of them needs a rate above 0")
        self.times = trace(args.trace) if args.trace else arrivals(steps, args.seconds, args.cv2, args.seed)
        if not len(self.times):
            raise UserError("no request arrives: raise --rate or --seconds")

    def governor(self, policy: str) -> Governor:
        try:
            return Governor(self.options, policy, self.args.late, self.args.slowest)
        except ValueError as error:
            raise UserError(f"--policies: {error}") from None
