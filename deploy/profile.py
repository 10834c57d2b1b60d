"""What each sub-network costs on this device: latency, throughput, energy and memory, by size of batch.

    python -m deploy.profile --model resnet50 --weights FILE --evaluation subnets.json -o profile.json
    python -m deploy.profile --model resnet50 --ways eager plain compiled graph --file resnet50.onnx

Every other flag is train_adn.py's: --stem, --val-crop-size, --device, --amp, … Calls take turns, and all the time
counts that one waits for an answer. With --evaluation one file says everything about a network on a device, also what
nobody should use; --budget-latency names the best that fits.
"""

import argparse
import json
import logging
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.command import command
from deploy.governor import Option
from utils.errors import UserError
from utils.evaluate import table
from utils.evaluate.picture import new_figure, save
from utils.files import write_json
from utils.flags.parsing import COUNT, NONNEGATIVE, POSITIVE

log = logging.getLogger(__name__)

QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)  # of latency
Means = dict[tuple[str, int], float]  # seconds of a batch, by sub-network and size
WAYS = ("eager", "plain", "compiled", "graph")  # `plain`: torchvision's network with only the weights that it uses


@dataclass(frozen=True)
class Row:
    subnet: str
    way: str
    batch: int
    ms: dict[str, float]  # of a call, by quantile: "0" … "100"
    images_per_s: float
    times: list[float]  # ms of the same calls, as they took turns with those of all other rows
    joules_per_image: float | None = None
    peak_mib: float | None = None  # of a GPU's memory, beside weights and images


@dataclass
class Profile:
    """profile.json: `about` the device and how it was measured; the sub-networks; a row for each, way and batch."""

    about: dict[str, Any]
    subnets: dict[str, dict[str, float]]  # by name, the largest first: macs, parameters, top1 where it is known
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> "Profile":
        try:
            content = json.loads(path.read_bytes())
            return cls(content["about"], content["subnets"], [Row(**row) for row in content["rows"]])
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; `python -m deploy.profile` writes a profile") from None
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: not a profile that `python -m deploy.profile` wrote") from None

    def of(self, way: str, batch: int | None = None) -> list[Row]:
        rows = [row for row in self.rows if row.way == way and batch in (None, row.batch)]
        if not rows:
            raise UserError(f"{way} was not profiled; there are {', '.join(dict.fromkeys(r.way for r in self.rows))}")
        return rows

    def groups(self) -> list[tuple[str, int]]:
        return list(dict.fromkeys((row.way, row.batch) for row in self.rows))

    def options(self, way: str = "eager") -> list[Option]:
        """What the governor chooses from, with latencies that hold for 95 calls in a hundred."""
        rows = [(row, self.subnets[row.subnet].get("top1")) for row in self.of(way)]
        options = [Option(r.subnet, r.batch, r.ms["95"] / 1000, top1) for r, top1 in rows if top1 is not None]
        if not options:
            raise UserError("the profile has no accuracies: profile again with --evaluation subnets.json")
        return options

    def means(self, way: str) -> Means:
        """Of every size up to the largest; between two measured ones in proportion."""
        known: dict[str, dict[int, float]] = {}
        for row in self.of(way):
            known.setdefault(row.subnet, {})[row.batch] = statistics.fmean(row.times) / 1000
        found = {}
        for subnet, seconds in known.items():
            measured = sorted(seconds)
            for size in range(1, measured[-1] + 1):
                found[subnet, size] = float(np.interp(size, measured, [seconds[batch] for batch in measured]))
        return found

    def dominated(self, way: str) -> dict[str, str]:
        """Sub-networks that nobody should use, and for each one as accurate that is no slower at any batch."""
        values: dict[str, list[float]] = {}
        for row in self.of(way):
            if "top1" in self.subnets[row.subnet]:
                values.setdefault(row.subnet, [self.subnets[row.subnet]["top1"]]).append(-row.ms["50"])
        pairs = ((a, b) for a in values for b in values if values[a] != values[b])
        return {a: b for a, b in pairs if all(x <= y for x, y in zip(values[a], values[b], strict=True))}

    def best(self, way: str, ms: float) -> Option:
        """The most accurate that answers its smallest batch in time, 95 times in a hundred."""
        smallest = min(options := self.options(way), key=lambda option: (option.batch, option.seconds))
        fitting = [o for o in options if o.batch == smallest.batch and o.seconds <= ms / 1000]
        if not fitting:
            raise UserError(f"--budget-latency {ms:g}: the fastest takes {1000 * smallest.seconds:.2f} ms")
        return max(fitting, key=lambda option: (option.accuracy, -option.seconds))


def flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batches", type=COUNT, nargs="+", default=[1, 2, 4, 8, 16], metavar="N", help="images per call (1 2 4 8 16)")
    add("--ways", nargs="+", choices=WAYS, default=["eager"], metavar="WAY", help=f"of {' '.join(WAYS)} (eager)")
    add("--file", type=Path, metavar="FILE", help="the network's exported .onnx, .pte or .pt2, as one more way")
    add("--subnets", nargs="+", default=["all"], metavar="CFG", help="words like TTFF, super, base (default: all)")
    add("--evaluation", type=Path, metavar="FILE", help="subnets.json of --test-only --skip-cfg all, for accuracies")
    add("--budget-latency", type=POSITIVE, metavar="MS", help="name the best sub-network of at most MS milliseconds")
    add("--threads", type=COUNT, metavar="N", help="of a CPU (default: torch's)")
    add("--rounds", type=COUNT, default=100, metavar="N", help="at most so many (default: 100)")
    add("--seconds", type=POSITIVE, default=120.0, metavar="S", help="at most so long (default: 120)")
    energies = "each row's window, where there is a counter; 0: no energy (default: 2)"
    add("--energy-seconds", type=NONNEGATIVE, default=2.0, metavar="S", help=energies)
    add("-o", "--output", type=Path, default=Path("profile.json"), metavar="FILE", help="(default: profile.json)")


def run(args: argparse.Namespace, others: list[str]) -> str:
    from deploy.measure import measure  # torch takes seconds to import: --help and deploy.simulate do without

    known = table.read(args.evaluation, "--evaluation")[0] if args.evaluation else []
    profile, accuracies = measure(args, others), {row.name: row.top1 for row in known}
    for name, about in profile.subnets.items():
        if name in accuracies:
            about["top1"] = accuracies[name]
        elif accuracies:
            log.warning("%s knows no accuracy of %s", args.evaluation, name)
    write_json(args.output, asdict(profile))
    draw(profile, args.output.with_suffix(".png"))
    text = as_text(profile)
    if args.budget_latency:
        best = profile.best(args.ways[0], args.budget_latency)
        text += f"\nbest within {args.budget_latency:g} ms: {best.subnet}, Acc@1 {best.accuracy:.2f}"
    return text


HEAD = "  {:11} {:>7} {:>6} {:>6} {:>8} {:16} {:>8} {:>8} {:>9} {:>8} {:>6} {:>8}"


def as_text(profile: Profile) -> str:
    """A table per way and batch; MACs, time and energy beside one another, as shares of the largest sub-network's."""
    lines = [", ".join(f"{key} {value}" for key, value in profile.about.items())]
    columns = ("sub-network", "Acc@1", "MACs", "time", "p50 ms", "(half of all)", "p95", "p99", "images/s", "J/image")
    for way, batch in profile.groups():
        first, *_ = rows = profile.of(way, batch)
        lines += [f"\n{way}, batch {batch}", HEAD.format(*columns, "energy", "peak MiB")]
        for row in rows:
            of, ms, joule = profile.subnets[row.subnet], row.ms, row.joules_per_image
            shares = of["macs"] / profile.subnets[first.subnet]["macs"], ms["50"] / first.ms["50"]
            half = f"({ms['25']:.2f}–{ms['75']:.2f})"
            cells = [of.get("top1"), *shares, ms["50"], half, ms["95"], ms["99"], row.images_per_s, joule]
            cells += [joule and joule / first.joules_per_image, row.peak_mib]
            lines.append(HEAD.format(row.subnet, *map(_cell, cells)))
    for way in dict(profile.groups()):
        worse = [f"{name} ({better} is better)" for name, better in profile.dominated(way).items()]
        lines += [f"\n{way}, nobody should use: {', '.join(worse)}"] if worse else []
    return "\n".join(lines)


def _cell(value: float | str | None) -> str:
    return f"{value:.2f}" if isinstance(value, float) else value or "-"


def draw(profile: Profile, path: Path) -> None:
    """Latency and energy over MACs, the largest sub-network's = 1, as the paper's Figure 5."""
    if (figure := new_figure(path, 7, 5)) is None:
        return
    axes = figure.subplots()
    for way, batch in profile.groups():
        first, *_ = rows = profile.of(way, batch)
        macs = [profile.subnets[row.subnet]["macs"] / profile.subnets[first.subnet]["macs"] for row in rows]
        axes.plot(macs, [row.ms["50"] / first.ms["50"] for row in rows], "o", label=f"latency, {way}, {batch}")
        if first.joules_per_image:
            shares = [row.joules_per_image / first.joules_per_image for row in rows]
            axes.plot(macs, shares, "^", label=f"energy, {way}, {batch}")
    axes.axline((1, 1), slope=1, color="grey", linewidth=0.7)
    axes.set(title=profile.about["model"], xlabel="MACs / super-net's", ylabel="latency or energy / super-net's")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    save(figure, path)


def main(argv: list[str] | None = None) -> int:
    return command("deploy.profile", __doc__, flags, run, argv)


if __name__ == "__main__":
    sys.exit(main())
