"""Trains a grid of networks, methods and seeds with the user's own command, and asks the paper's claims of it.

    python -m benchmarks.reproduce quick                         about 80 minutes on 2 CPU cores
    python -m benchmarks.reproduce full --jobs 1 -- --download   one GPU; what follows -- goes to every train_adn.py
    python -m benchmarks.reproduce --report                      write results/method.md, systems.md from results/*.json

Stops and continues at any time: a finished run is kept, an unfinished one goes on from its checkpoint.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.reproduce import page, systems
from benchmarks.reproduce.grids import GRIDS, Run
from benchmarks.reproduce.runner import Runner
from utils.errors import UserError
from utils.files import whole_file
from utils.flags.parsing import COUNT


def main(argv: Sequence[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.reproduce", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("grid", nargs="?", choices=GRIDS, default="full", help="which grid (default: full)")
    keep = "what the results file has counts as done, wherever it ran: a grid in parts, on several machines or days"
    add("--keep", action="store_true", help=keep)
    only = "only the runs of these names, as --dry-run tells them, in this order: 'resnet18-*-0' 'resnet20-drawn-*'"
    add("--only", nargs="+", metavar="NAME", help=only)
    add("--dry-run", action="store_true", help="list the runs, run nothing")
    add("--report", action="store_true", help="only write page and pictures from the results there are")
    costs = f"only measure what the networks of `{systems.GRID}` take: minutes in which nothing else should run"
    add("--costs", action="store_true", help=costs)
    add("--time-limit", type=COUNT, default=0, metavar="MIN", help="stop cleanly after so many minutes")
    add("--jobs", type=COUNT, default=os.cpu_count() or 1, metavar="N", help="runs at a time (default: one per core)")
    add("--work-dir", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="of the runs (%(default)s)")
    add("--results", type=Path, default=Path("results"), metavar="DIR", help="of results and page (%(default)s)")
    end = [*argv, "--"].index("--")
    args = parser.parse_args(argv[:end], argparse.Namespace(flags=argv[end + 1 :]))
    try:
        if args.costs:
            from benchmarks.reproduce import costs  # brings torch, which takes seconds

            print(f"written: {costs.measure(args.work_dir, args.results)}")
            return 0
        if not args.report:
            return reproduce(args)
        pages = [page.write(args.results, besides=systems.GRID), systems.write(args.results)]
        print(f"written: {', '.join(str(path) for path in pages if path)}")
    except UserError as error:
        print(f"benchmarks.reproduce: error: {error}", file=sys.stderr)
        return 2
    return 0


def reproduce(args: argparse.Namespace) -> int:
    """Run what is left of the grid, and keep the results, also of a part. 75: unfinished, as train_adn.py's."""
    grid, path = GRIDS[args.grid], args.results / f"{args.grid}.json"
    runs = grid.runs
    wanted = [run for name in args.only or ["*"] for run in runs if fnmatch(run.name, name)]
    if not wanted:
        raise UserError(f"--only {' '.join(args.only)}: the grid {args.grid} has no such run; --dry-run lists them")
    runner = Runner(args.work_dir.absolute() / args.grid, args.jobs, args.flags, kept(path, runs) if args.keep else {})
    for run in wanted:
        print("done " if runner.result(run) else "to do", run.name, flush=True)
    if args.dry_run:
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, runner.stop)
    signal.alarm(60 * args.time_limit)
    try:
        return 0 if runner.execute(wanted) else 75
    finally:
        found = [result for run in runs if (result := runner.result(run))]
        content = {"grid": args.grid, "note": grid.note, "planned": len(runs), "runs": found}
        with whole_file(path) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
        print(f"{path}: {len(found)} of {len(runs)} runs; the same command runs what is left")


def kept(path: Path, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The results there of today's commands, by run; without those whose weights another run starts from."""
    try:
        rows = {row["command"]: row for row in json.loads(path.read_text())["runs"]} if path.exists() else {}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"--keep: {path} is not a results file that this command wrote: mend or move it") from None
    found = {run.name: rows[run.command] for run in runs if run.command in rows}
    for run in runs:
        if run.before and run.name not in found:
            found.pop(run.before.name, None)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
