"""The table of sub-networks: what each costs and how good it is, and the best one within a budget.

Imports no torch: other commands that read a table answer at once.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_csv, write_json


@dataclass(frozen=True)
class Row:
    """A sub-network. Costs are per image, `latency_ms` is per call (a batch of --latency-batch images)."""

    name: str
    gmacs: float
    params_m: float
    latency_ms: float | None
    top1: float
    top5: float

    def __str__(self) -> str:
        latency = "" if self.latency_ms is None else f", {self.latency_ms:.2f} ms"
        accuracy = f"Acc@1 {self.top1:.3f} Acc@5 {self.top5:.3f}"
        return f"{self.name} ({self.gmacs:.3f} GMACs, {self.params_m:.2f} M parameters{latency}) {accuracy}"


@dataclass(frozen=True)
class Budget:
    """The most that a sub-network may cost; None: no limit."""

    gmacs: float | None = None
    latency_ms: float | None = None
    params_m: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        return {name: limit for name, limit in asdict(self).items() if limit is not None}

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Budget":
        return cls(args.budget_gmacs, args.budget_latency, args.budget_params)

    def __bool__(self) -> bool:
        return bool(self.limits)

    def __str__(self) -> str:
        return " and ".join(f"{limit:g} {UNITS[name]}" for name, limit in self.limits.items())

    def within(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that fit; if none does, an error that says what the smallest are."""
        if "latency_ms" in self.limits and any(row.latency_ms is None for row in rows):
            raise UserError("--budget-latency: latency was not measured; choose --latency-batch 1 or more")
        fitting = [row for row in rows if all(getattr(row, name) <= limit for name, limit in self.limits.items())]
        if not fitting:
            least = {name: min(rows, key=lambda row, name=name: getattr(row, name)) for name in self.limits}
            smallest = " and ".join(f"{getattr(row, n):.3f} {UNITS[n]} ({row.name})" for n, row in least.items())
            raise UserError(f"no sub-network within {self}: the smallest there is has {smallest}")
        return fitting

    def best(self, rows: Sequence[Row]) -> Row:
        """The most accurate row within the budget; of equals the cheapest."""
        return max(self.within(rows), key=lambda row: (row.top1, -row.gmacs))


UNITS = {"gmacs": "GMACs", "latency_ms": "ms", "params_m": "M parameters"}
# The flags that say what was measured
REPEATED = (
    *("model", "stem", "patch_size", "window_size", "no_switchable_norms", "weights", "weights_dir", "init_from"),
    *("model_ema", "data_path", "val_split", "val_images", "decode", "val_resize_size", "val_crop_size"),
    *("interpolation", "sizes", "normalize"),
)


def pareto(rows: Sequence[Row], cost: str = "gmacs") -> list[Row]:
    """The rows that no other beats: those more accurate than everything cheaper, by cost."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (getattr(row, cost), -row.top1)):
        if not front or row.top1 > front[-1].top1:
            front.append(row)
    return front


def as_text(rows: Sequence[Row]) -> str:
    """The table to read, cheapest first; the Pareto front is starred."""
    best = pareto(rows)
    width = max(len("sub-network"), *(len(row.name) for row in rows))
    lines = [f"  {'sub-network':{width}}  {'GMACs':>8} {'params M':>9} {'Acc@1':>8} {'Acc@5':>8} {'latency ms':>11}"]
    for row in rows:
        latency = "-" if row.latency_ms is None else f"{row.latency_ms:.2f}"
        lines.append(
            f"{'*' if row in best else ' '} {row.name:{width}}  {row.gmacs:8.3f} {row.params_m:9.2f} "
            f"{row.top1:8.3f} {row.top5:8.3f} {latency:>11}"
        )
    return "\n".join([*lines, "* no cheaper sub-network is as accurate"])


def write(rows: Sequence[Row], facts: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """subnets.csv and subnets.json, the latter with `facts` about model, data, versions and settings."""
    write_csv(folder / "subnets.csv", [field.name for field in fields(rows[0])], map(astuple, rows))
    write_json(folder / "subnets.json", {**facts, "subnets": [asdict(row) for row in rows]})
    return folder / "subnets.csv", folder / "subnets.json"


def read(path: str | Path, flag: str = "--from-table") -> tuple[list[Row], dict[str, Any]]:
    """Rows and facts of a subnets.json."""
    try:
        facts = json.loads(Path(path).read_bytes())
        rows = [Row(**row) for row in facts.pop("subnets")]
        if not rows:
            raise ValueError
        as_text(rows)  # else some figure is no number
        return rows, facts
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}; `--test-only --skip-cfg all` writes one") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{flag} {path}: not a subnets.json that `--test-only --skip-cfg all` wrote") from None


def choice(row: Row, budget: Budget, facts: dict[str, Any]) -> str:
    """What the best one is, and how to go on with it."""
    command = ["python", "train_adn.py", "--test-only"]
    for name in REPEATED:
        if value := facts.get(name):
            words = value if isinstance(value, list) else [] if value is True else [value]
            command += [f"--{name.replace('_', '-')}", *map(str, words)]
    return (
        f"best within {budget}: {row}\n"
        f"  evaluate it: {shlex.join([*command, '--skip-cfg', row.name])}\n"
        f'  take it out: model.extract(model.parse("{row.name}"))'
    )
