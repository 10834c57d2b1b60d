"""How fast training, evaluation, sub-networks and input are: `python -m tools.benchmark --help`.

What is measured lies in `tools/bench/`: this file decides what to measure, in which order, and until when.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tools.bench import flags
from utils.files import whole_file

ENOUGH_TO_COMPILE = 150  # seconds; what a network's graphs take, with a margin


def main(argv: Sequence[str] | None = None) -> int:
    args = flags.parsed(argv)  # before torch, which takes seconds
    from tools.bench import report

    if args.report:
        print(report.markdown(read(args.report)), end="")
        return 0
    older = read(args.json) if args.json and args.json.exists() else None
    measured = measure(args)
    if measured is None:
        return 0
    if older:
        measured = measured.add_to(older)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(args.json) as file:
            file.write((json.dumps(measured.content()) + "\n").encode())
    print(report.markdown(measured), end="")
    return 0


def read(path: Path):
    from tools.bench.results import Results

    return Results.of(json.loads(path.read_text()))


def measure(args):
    """Everything asked for, as long as there is time. None in all but the main process."""
    import torch

    from tools import assemble
    from tools.bench import results
    from utils import distributed, memory

    distributed.connect()
    device = distributed.join(assemble.choose_device(args.device))
    if device.type == "cpu":
        memory.keep_freed()
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(args.threads or torch.get_num_threads())
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "report")}
    everything = results.Results(results.machine(device), settings)
    if args.json and args.json.exists() and read(args.json).machine != everything.machine:
        raise SystemExit(f"--json {args.json}: measured on another machine or with other versions; choose another name")
    started = time.monotonic()
    for what, needs, job in list(jobs(args, device)):
        left = distributed.from_main(60 * args.budget_minutes - (time.monotonic() - started))
        if left < needs:
            everything.skipped[what] = f"the {args.budget_minutes:g} minutes of --budget-minutes were over"
            continue
        say(f"{what} …")
        try:
            groups = job()
        except torch.cuda.OutOfMemoryError:
            everything.skipped[what] = "the GPU's memory is too small: try a smaller --batch-size"
            continue
        everything.groups += groups if isinstance(groups, list) else [groups]
    return everything if distributed.is_main() else None


Job = tuple[str, float, Callable]


def jobs(args, device) -> Iterator[Job]:
    """(what, seconds it needs, how), the most wanted first."""
    from utils.evaluate.timing import Effort

    from tools.bench import inputs, step, subnets

    cuda = device.type == "cuda"
    effort = Effort(warm_up=2, at_least=min(5, args.rounds), at_most=args.rounds, seconds=args.seconds)
    compiled = cuda if args.compile is None else args.compile
    setup = {
        name: step.Setup(name, args.batch_size or (256 if cuda else 16), args.image_size, device, args.amp)
        for name in args.model
    }
    if "input" in args.parts:
        yield inputs.TITLE, 0, partial(inputs.measure, args.input_images, effort)
    for name in args.model:
        if "step" in args.parts:
            yield f"{step.TITLE}, {name}", 0, partial(step.measure, setup[name], effort)
        if "latency" in args.parts:
            yield f"{subnets.LATENCY}, {name}", 0, partial(subnets.latency, setup[name], args.latency_batch, effort)
            yield f"{subnets.SWITCHING}, {name}", 0, partial(subnets.switching, setup[name], effort)
        if "eval" in args.parts:
            batch = args.eval_batch or (256 if cuda else 16)
            yield f"{subnets.ALL}, {name}", 0, partial(subnets.everything, setup[name], batch, effort)
    needs = ENOUGH_TO_COMPILE if compiled else 0
    for name in args.model:
        if "latency" in args.parts:
            yield f"{subnets.SINGLE}, {name}", needs, partial(subnets.single, setup[name], effort, compiled)
        if "step" in args.parts and compiled:
            yield f"{step.COMPILED}, {name}", needs, partial(step.measure_compiled, setup[name], effort)


def say(line: str) -> None:
    from utils import distributed

    if distributed.is_main():
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
