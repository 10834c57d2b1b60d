"""Trains a grid of networks, methods and seeds with the user's own command, and asks the paper's claims of it.

    python -m benchmarks.reproduce quick                         about 80 minutes on 2 CPU cores
    python -m benchmarks.reproduce full -- --download            on one GPU; what follows -- goes to every train_adn.py
    python -m benchmarks.reproduce --report                      write results/method.md from results/*.json

Stops and continues at any time: a finished run is kept, an unfinished one goes on from its checkpoint.
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reproduce import page
from benchmarks.reproduce.grids import GRIDS
from benchmarks.reproduce.runner import RESULT, Runner
from utils.errors import UserError
from utils.files import whole_file
from utils.flags.parsing import COUNT

UNFINISHED = 75  # as train_adn.py's: the same command goes on
RESULTS = Path(__file__).resolve().parents[2] / "results"


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.reproduce", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("grid", nargs="?", choices=GRIDS, default="full", help="which grid (default: full)")
    add("--dry-run", action="store_true", help="list the runs, run nothing")
    add("--report", action="store_true", help="only write page and pictures from the results there are")
    add("--time-limit", type=float, metavar="MIN", help="stop cleanly after so many minutes")
    add("--jobs", type=COUNT, metavar="N", help="runs at a time (default: 1 on a GPU, one per core on a CPU)")
    add("--work-dir", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="of the runs (%(default)s)")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="of results and page (default: results)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    own = given.index("--") if "--" in given else len(given)
    args = parser().parse_args(given[:own])
    try:
        if args.report:
            print(f"written: {page.write(args.results)}")
            return 0
        return reproduce(args, given[own + 1 :])
    except UserError as error:
        print(f"benchmarks.reproduce: error: {error}", file=sys.stderr)
        return 2


def reproduce(args: argparse.Namespace, extra: list[str]) -> int:
    """Run what is left of the grid, and keep the results, also of a part."""
    grid, folder = GRIDS[args.grid], args.work_dir.absolute() / args.grid
    runs, runner = grid.runs(), Runner(folder, args.jobs or jobs(), extra)
    for run in runs:
        print("done " if runner.finished(run) else "to do", run.name, flush=True)
    if args.dry_run:
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.stop)
    clock = threading.Timer(60 * (args.time_limit or 1e6), runner.stop)
    clock.start()
    try:
        done = runner.execute(runs)
    finally:
        clock.cancel()
        found = [json.loads((folder / r.name / RESULT).read_text()) for r in runs if runner.finished(r)]
        with whole_file(args.results / f"{args.grid}.json") as file:
            content = {"grid": args.grid, "note": grid.note, "planned": len(runs), "runs": found}
            file.write(json.dumps(content, indent=1).encode() + b"\n")
        print(f"{args.results / args.grid}.json: {len(found)} of {len(runs)} runs; the same command goes on")
    return 0 if done else UNFINISHED


def jobs() -> int:
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
