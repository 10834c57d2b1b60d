"""Reproduce the paper's claims on Fashion-MNIST, with the user's own command: `python tools/reproduce.py --help`.

Trains a grid of networks, methods and seeds, then answers each claim with a difference, its spread and a verdict. Stops
and continues at any time: a finished run is kept, an unfinished one goes on from its checkpoint.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.evidence import collect, drawings, report
from tools.evidence.grid import Grid
from tools.evidence.grids import FULL, QUICK
from tools.evidence.runner import ROOT, Executor, Failed, finished
from tools.sections import put
from utils.errors import UserError
from utils.files import whole_file

UNFINISHED = 75  # as train_adn.py's: the same command goes on


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="a small grid for 2 CPU cores, about 80 minutes")
    add("--dry-run", action="store_true", help="list the runs and what they cost, run nothing")
    add("--report", action="store_true", help="only write tables and pictures anew from the results there are")
    add("--time-limit", type=float, metavar="MIN", help="stop cleanly after so many minutes; the same command goes on")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: 1 on a GPU, one per core on a CPU)")
    add(
        "--work-dir",
        type=Path,
        default=Path("runs/reproduce"),
        metavar="DIR",
        help="of the runs (default: %(default)s)",
    )
    add("--results", type=Path, default=ROOT / "results", metavar="DIR", help="of the results (default: results)")
    add("--readme", type=Path, default=ROOT / "README.md", metavar="FILE", help="whose marked lines --report renews")
    add("--no-pictures", action="store_true", help="draw none (they need matplotlib)")
    add("--device", default="auto", help="cuda, cpu or auto, as of train_adn.py")
    add("--download", action="store_true", help="let train_adn.py fetch the data")
    add("--download-dir", metavar="DIR", help="where it is kept")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    grid = QUICK if args.quick else FULL
    try:
        if args.report:
            return write_report(args)
        if args.dry_run:
            print(plan(grid, args.work_dir / grid.name))
            return 0
        return reproduce(grid, args)
    except (UserError, Failed) as error:
        print(f"reproduce.py: error: {error}", file=sys.stderr)
        return 2


def plan(grid: Grid, folder: Path) -> str:
    """The runs, what each costs by estimate and whether it is finished."""
    runs = grid.runs()
    lines = [f"grid {grid.name}: {grid.note}"]
    lines += [f"{'done' if finished(folder, run) else 'to do':6} {run.minutes:5.1f} min  {run.name}" for run in runs]
    left = [run.minutes for run in runs if not finished(folder, run)]
    return "\n".join(
        [*lines, f"{len(left)} of {len(runs)} runs to do, about {sum(left):.0f} minutes one after the other"]
    )


def reproduce(grid: Grid, args: argparse.Namespace) -> int:
    """Run what is left of the grid, and note the results, also of a part."""
    folder = args.work_dir.absolute() / grid.name
    started, limit = time.monotonic(), 60 * args.time_limit if args.time_limit else float("inf")
    print(plan(grid, folder), flush=True)
    jobs = args.jobs or (1 if on_gpu(args.device) else os.cpu_count() or 1)
    measure_steps(grid, folder, args.device)
    executor = Executor(folder, jobs, data_arguments(args), started + limit)
    try:
        done = executor.execute(grid.runs())
    finally:
        command = "python tools/reproduce.py" + ("" if grid is FULL else f" --{grid.name}")
        written = collect.collect(grid, folder, args.results, command)
    left = sum(not finished(folder, run) for run in grid.runs())
    print(
        f"{written}: {len(grid.runs()) - left} runs; "
        + (f"{left} left, the same command goes on" if left else "all done")
    )
    return 0 if done else UNFINISHED


def on_gpu(device: str) -> bool:
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def data_arguments(args: argparse.Namespace) -> list[str]:
    """What the runs' commands take over as it is. It changes no result."""
    given = ["--device", args.device, *(["--download"] if args.download else [])]
    return [*given, *(["--download-dir", args.download_dir] if args.download_dir else [])]


def measure_steps(grid: Grid, folder: Path, device: str) -> None:
    """Time the methods' steps once, in turns and before anything else, in a process that then gives its memory back."""
    path = folder / collect.STEPS
    if path.exists():
        return
    from tools.evidence import steps

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        measured = pool.submit(steps.measure_all, grid, device).result()
    with whole_file(path) as file:
        file.write(json.dumps(measured, indent=1).encode())


def write_report(args: argparse.Namespace) -> int:
    """Tables and pictures from results/*.json: results/README.md, and the marked lines of the README."""
    grids = collect.read(args.results)
    if not grids:
        raise UserError(f"{args.results}: no results yet; run the grid first")
    if not args.no_pictures:
        for results in grids:
            for setting in report.settings(results):
                drawings.draw(results, setting, args.results)
    put(args.readme, report.SECTION, report.markdown(grids, "results"))
    print(f"written: {args.readme}, pictures in {args.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
