"""What a profiled device would hold under a load: attainment of deadlines and mean accuracy of the governor's policies.

    python -m deploy.simulate profile.json --target-ms 60 --rate 150 --cv2 4          bursts by chance
    python -m deploy.simulate profile.json --target-ms 60 --steps 2:80 2:300          2 s of 80/s and of 300/s by turns
    python -m deploy.simulate profile.json --target-ms 60 --trace arrivals.txt        a line per request: its second

One worker. A batch takes a time drawn from its measured quantiles. The same seed gives the same numbers.
"""

import argparse
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deploy.governor import POLICIES, Governor, Option
from deploy.profile import QUANTILES, Profile
from utils.errors import UserError
from utils.files import whole_file, write_json
from utils.flags.parsing import NATURAL, NONNEGATIVE, POSITIVE

log = logging.getLogger(__name__)


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


class Batch(NamedTuple):
    """A line of the time line."""

    start: float
    subnet: str
    served: int
    waiting: int


@dataclass
class Outcome:
    """What became of each request; NaN: not answered."""

    target: float
    arrived: np.ndarray
    right: np.ndarray | None = None  # whether an answer was, where that is known
    finished: np.ndarray = field(init=False)
    accuracy: np.ndarray = field(init=False)  # in %, what the profile says of the sub-network that answered
    batches: list[Batch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.finished, self.accuracy = np.full((2, len(self.arrived)), np.nan)

    def summary(self) -> dict[str, Any]:
        took = self.finished - self.arrived
        met = took <= self.target
        served = Counter()
        for batch in self.batches:
            served[batch.subnet] += batch.served
        p50, p99 = np.nanquantile(took, (0.5, 0.99)) * 1000 if served else (None, None)
        return {
            "attained": 100 * float(met.mean()),  # in % of all requests
            "accuracy": float(self.accuracy[met].mean()) if met.any() else None,
            "right": 100 * float(self.right[met].mean()) if self.right is not None and met.any() else None,
            "refused": 100 * float(np.isnan(took).mean()),
            "p50_ms": p50,
            "p99_ms": p99,
            "shares": {name: count / len(took) for name, count in served.most_common()},
        }


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
            now += duration(option, len(requests))
        elif following < len(times):
            now = due[following]
        else:
            return outcome
        while due[following] <= now:
            governor.submit(following, due[following] + target, due[following])
            following += 1
        if decision:
            for request in governor.finish(decision):
                outcome.finished[request], outcome.accuracy[request] = now, option.accuracy


class Durations:
    """Seconds of a batch, drawn from the profile's quantiles; between two measured sizes in proportion."""

    def __init__(self, profile: Profile, way: str, seed: int) -> None:
        at, finest = [quantile / 100 for quantile in QUANTILES], (np.arange(256) + 0.5) / 256
        sizes: dict[str, dict[int, np.ndarray]] = {}
        for row in profile.of(way):
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


def load_flags(parser: argparse.ArgumentParser) -> None:
    """Of a profile, a load and policies, for the simulated and the real device."""
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
    add("--promise", type=int, choices=QUANTILES, default=95, help="quantile of latency to count on (default: 95)")
    add("--late", action="store_true", help="serve late what cannot be met, instead of refusing it")
    add("--note", default="", metavar="TEXT", help="a sentence for the page, of what the numbers do not say")
    add("-o", "--output-dir", type=Path, default=Path(), metavar="DIR", help="for numbers and picture (default: here)")


def _step(text: str) -> tuple[float, float]:
    seconds, _, rate = text.partition(":")
    return POSITIVE(seconds), NONNEGATIVE(rate)


class Load:
    """What `load_flags` ask for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.profile, self.target = args, Profile.read(args.profile), args.target_ms / 1000
        self.options = self.profile.options(args.way, args.promise)
        self.policies = args.policies or [*POLICIES, *dict.fromkeys(option.subnet for option in self.options)]
        self.times = self._trace(args.trace) if args.trace else self._arrivals()
        if not len(self.times):
            raise UserError("no request arrives: raise --rate or --seconds")

    def _arrivals(self) -> np.ndarray:
        args = self.args
        steps = args.steps or [(args.seconds, args.rate)]
        if not any(rate for _, rate in steps):
            raise UserError("--steps: one of them needs a rate above 0")
        return arrivals(steps, args.seconds, args.cv2, args.seed)

    def _trace(self, path: Path) -> np.ndarray:
        try:
            times = np.sort(np.array([float(line) for line in path.read_text().split()]))
            if not np.isfinite(times).all():
                raise ValueError(f"it holds {times[-1]}")
        except OSError as error:
            raise UserError(f"--trace {path}: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"--trace {path}: a number of seconds per line is wanted ({error})") from None
        return times - times[:1]

    def governor(self, policy: str) -> Governor:
        try:
            return Governor(self.options, policy, self.args.late)
        except ValueError as error:
            raise UserError(f"--policies: {error}") from None

    def simulated(self, policy: str) -> Outcome:
        durations = Durations(self.profile, self.args.way, self.args.seed)
        return simulate(self.times, self.target, self.governor(policy), durations)


COLUMNS = (("deadlines met", "attained"), ("mean Acc@1", "accuracy"), ("right", "right"), ("refused", "refused"))
COLUMNS += (("p50 ms", "p50_ms"), ("p99 ms", "p99_ms"))


def as_text(found: dict[str, dict[str, Any]]) -> str:
    width = max(map(len, [*found, "policy"]))
    lines = [f"{'policy':{width}}  {'  '.join(head for head, _ in COLUMNS)}  share of requests"]
    for policy, of in found.items():
        cells = ("-" if of[key] is None else f"{of[key]:.2f}" for _, key in COLUMNS)
        cells = [cell.rjust(len(head)) for cell, (head, _) in zip(cells, COLUMNS, strict=True)]
        cells += [f"{name} {100 * share:.0f} %" for name, share in list(of["shares"].items())[:4]]
        lines.append(f"{policy:{width}}  {'  '.join(cells)}")
    return "\n".join(lines)


def draw(outcomes: dict[str, dict[str, Outcome]], order: Sequence[str], title: str, path: Path) -> bool:
    """Attainment over mean accuracy, by kind (simulated, live) and policy; and the first policy's time line."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("%s was not drawn: matplotlib is missing (pip install matplotlib)", path.name)
        return False
    figure = Figure(figsize=(9, 9), layout="constrained")
    over, rate, depth, queue = figure.subplots(4, height_ratios=(3, 1, 1, 1))
    for kind, of in outcomes.items():
        style = (
            {"marker": "s", "label": kind} if kind == "live" else {"marker": "o", "fillstyle": "none", "label": kind}
        )
        places = {policy: (found["accuracy"], found["attained"]) for policy, o in of.items() if (found := o.summary())}
        places = {policy: place for policy, place in places.items() if place[0] is not None}
        over.plot(*np.array([*places.values()]).reshape(-1, 2).T, linestyle="none", **style)
        for policy, place in places.items():
            over.annotate(policy, place, (5, 3), textcoords="offset points", fontsize=7)
    over.set(title=title, xlabel="mean Acc@1 of answers in time (%)", ylabel="deadlines met (%)")
    over.legend(loc="lower left")
    kind, of = list(outcomes.items())[-1]
    policy, shown = next(iter(of.items()))
    starts = np.array([batch.start for batch in shown.batches])
    bins = np.linspace(0, shown.arrived[-1] + 1e-9, 101)
    rate.stairs(np.histogram(shown.arrived, bins)[0] / np.diff(bins), bins)
    rate.set(ylabel="requests/s", title=f"{policy}, {kind}")
    depth.plot(starts, [order.index(batch.subnet) for batch in shown.batches], ".", markersize=2)
    depth.set_yticks(range(len(order)), order, fontsize=5)
    queue.plot(starts, [batch.waiting + batch.served for batch in shown.batches], linewidth=0.7)
    queue.set(ylabel="waiting", xlabel="seconds")
    for axes in (over, rate, depth, queue):
        axes.grid(alpha=0.3)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    return True


PAGE = """# {name}

Written by `python -m deploy.{name} {flags}`. {note}

{facts}. {requests} requests arrived. *Deadlines met*: % of all, also of refused ones. *Mean Acc@1*: the profile's,
of those sub-networks that answered in time; *right*: % of these answers that were.

```
{text}
```

![{name}]({name}.png)
"""


def report(load: Load, outcomes: dict[str, dict[str, Outcome]], name: str, argv: Sequence[str]) -> str:
    """Writes numbers, picture and page, and gives the tables to print."""
    found = {kind: {policy: o.summary() for policy, o in of.items()} for kind, of in outcomes.items()}
    args, about = load.args, load.profile.about
    asked = {key: value for key, value in vars(args).items() if value is not None}
    picture, text = args.output_dir / f"{name}.png", "\n\n".join(f"{kind}\n{as_text(of)}" for kind, of in found.items())
    write_json(args.output_dir / f"{name}.json", {"load": asked, "requests": len(load.times), "about": about, **found})
    draw(outcomes, list(load.profile.subnets), f"{len(load.times)} requests, {args.target_ms:g} ms", picture)
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    with whole_file(args.output_dir / f"{name}.md") as file:
        flags = shlex.join(word for word in argv if not args.note or word not in ("--note", args.note))
        known = {"name": name, "flags": flags, "note": args.note, "facts": facts, "text": text}
        file.write(PAGE.format(**known, requests=len(load.times)).encode())
    return text


def command(name: str, run: Callable[[Sequence[str]], str], argv: Sequence[str]) -> int:
    """A command of this folder: prints what `run` gives; a mistake is one line and code 2."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        sys.stdout.write(run(argv) + "\n")
    except UserError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        return 2
    return 0


def main(argv: Sequence[str]) -> str:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m deploy.simulate", description=__doc__, formatter_class=form, allow_abbrev=False
    )
    load_flags(parser)
    load = Load(parser.parse_args(argv))
    return report(load, {"simulated": {policy: load.simulated(policy) for policy in load.policies}}, "simulate", argv)


if __name__ == "__main__":
    sys.exit(command("deploy.simulate", main, sys.argv[1:]))
