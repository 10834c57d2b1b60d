"""What became of a load's requests, simulated or live: numbers, tables and a picture of each policy's."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from deploy.arrivals import Load
from deploy.profile import Means
from utils.evaluate.picture import new_figure, save
from utils.files import whole_file, write_json

COLUMNS = {"deadlines met": "attained", "mean Acc@1": "accuracy", "right": "right", "refused": "refused"}
COLUMNS |= {"p50 ms": "p50_ms", "p99 ms": "p99_ms", "device": "device"}
PAGE = """# {name}

Written by `python -m deploy.{name}`, with the flags that are in [{name}.json]({name}.json).

{facts}. {requests} requests arrived. *Deadlines met*: % of all, also of refused ones. *Mean Acc@1*: the profile's, of
those sub-networks that answered in time; *right*: % of these answers that were; *device*: what its batches took in
all, as a multiple of the profile's mean times. *Profiled again*: simulated on a device that is in each part of the
load as slow as the shortest and the longest profiled calls were, in the thread that serves, before and after it; the
server's own time from one batch to the next is as it was live.

```
{text}
```

![{name}]({name}.png)
"""


class Batch(NamedTuple):
    """A line of the time line."""

    start: float
    subnet: str
    served: int
    waiting: int
    seconds: float


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

    def summary(self, means: Means) -> dict[str, Any]:
        took, served = self.finished - self.arrived, Counter()
        met = took <= self.target
        for batch in self.batches:
            served[batch.subnet] += batch.served
        p50, p99 = np.nanquantile(took, (0.5, 0.99)) * 1000 if served else (None, None)
        usual = sum(means[batch.subnet, batch.served] for batch in self.batches)
        return {
            "attained": 100 * float(met.mean()),  # in % of all requests
            "accuracy": float(self.accuracy[met].mean()) if met.any() else None,
            "right": 100 * float(self.right[met].mean()) if self.right is not None and met.any() else None,
            "refused": 100 * float(np.isnan(took).mean()),
            "p50_ms": p50,
            "p99_ms": p99,
            "device": sum(batch.seconds for batch in self.batches) / usual if usual else None,
            "shares": {name: count / len(took) for name, count in served.most_common()},
        }


def report(load: Load, outcomes: dict[str, dict[str, Outcome]], name: str) -> str:
    """Writes numbers, picture and page of what became of it, by kind (simulated, live) and policy; gives the tables."""
    means = load.profile.means(load.args.way)
    found = {
        kind: {policy: outcome.summary(means) for policy, outcome in by_policy.items()}
        for kind, by_policy in outcomes.items()
    }
    args, about, requests = load.args, load.profile.about, len(load.times)
    asked = {key: value for key, value in vars(args).items() if value is not None}
    write_json(args.output_dir / f"{name}.json", {"load": asked, "requests": requests, "about": about, **found})
    if figure := new_figure(path := args.output_dir / f"{name}.png", 9, 9):
        over, *lines = figure.subplots(4, height_ratios=(3, 1, 1, 1))
        draw_policies(over, found)
        over.set_title(f"{requests} requests, {args.target_ms:g} ms")
        kind, by_policy = list(outcomes.items())[-1]
        policy, shown = next(iter(by_policy.items()))
        draw_time(lines, shown, list(load.profile.subnets))
        lines[0].set_title(f"{policy}, {kind}")
        for axes in figure.axes:
            axes.grid(alpha=0.3)
        save(figure, path)
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    text = "\n\n".join(f"{kind}\n{as_text(summaries)}" for kind, summaries in found.items())
    with whole_file(args.output_dir / f"{name}.md") as file:
        file.write(PAGE.format(name=name, facts=facts, requests=requests, text=text).encode())
    return text


def as_text(found: dict[str, dict[str, Any]]) -> str:
    width = max(map(len, [*found, "policy"]))
    lines = [f"{'policy':{width}}  {'  '.join(COLUMNS)}  share of requests"]
    for policy, summary in found.items():
        values = {head: summary[key] for head, key in COLUMNS.items()}
        cells = [("-" if value is None else f"{value:.2f}").rjust(len(head)) for head, value in values.items()]
        cells += [f"{name} {100 * share:.0f} %" for name, share in list(summary["shares"].items())[:4]]
        lines.append(f"{policy:{width}}  {'  '.join(cells)}")
    return "\n".join(lines)


def draw_policies(axes: Any, found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Attainment over mean accuracy."""
    for fill, (kind, summaries) in zip(("none", "left", "full"), found.items(), strict=False):
        answered = {policy: one for policy, one in summaries.items() if one["accuracy"] is not None}
        places = {policy: (one["accuracy"], one["attained"]) for policy, one in answered.items()}
        axes.plot(*np.array([*places.values()]).reshape(-1, 2).T, "o", fillstyle=fill, label=kind)
        for policy, place in places.items():
            axes.annotate(policy, place, (5, 3), textcoords="offset points", fontsize=7)
    axes.set(xlabel="mean Acc@1 of answers in time (%)", ylabel="deadlines met (%)")
    axes.legend(loc="lower left")


def draw_time(lines: Sequence[Any], shown: Outcome, order: list[str]) -> None:
    """Rate, chosen depth and queue."""
    rate, depth, queue = lines
    starts = np.array([batch.start for batch in shown.batches])
    bins = np.linspace(0, shown.arrived[-1] + 1e-9, 101)
    rate.stairs(np.histogram(shown.arrived, bins)[0] / np.diff(bins), bins)
    rate.set_ylabel("requests/s")
    depth.plot(starts, [order.index(batch.subnet) for batch in shown.batches], ".", markersize=2)
    depth.set_yticks(range(len(order)), order, fontsize=5)
    queue.plot(starts, [batch.waiting + batch.served for batch in shown.batches], linewidth=0.7)
    queue.set(ylabel="waiting", xlabel="seconds")
