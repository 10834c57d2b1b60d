"""Measures training step, latency of every sub-network, evaluation of all of them, and input pipeline, each beside
torchvision's network and the official implementation's way of doing it. Everything takes turns in one process, under
one setting of the allocator: that of the environment (MALLOC_…, LD_PRELOAD), which the results name.

    python -m benchmarks.speed --json results/speed-cpu.json     everything
    python -m benchmarks.speed --model resnet50 --parts step     a part of it, to look at
    python -m benchmarks.speed --report                          write results/speed.md from results/speed-*.json
    torchrun --nproc_per_node=2 -m benchmarks.speed --parts step         DistributedDataParallel on all sides
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.speed import page
from benchmarks.speed.results import ALL, INPUT, LATENCY, SINGLE, STEP, SWITCHING, Results
from utils.errors import UserError
from utils.flags.parsing import COUNT

PARTS = ("input", "step", "latency", "eval")
MODELS = ("resnet50", "mobilenet_v2", "vit_b_16", "swin_t")
RESULTS = Path(__file__).resolve().parents[2] / "results"


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    form, switch = argparse.RawDescriptionHelpFormatter, argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"{' '.join(PARTS)} (default: all)")
    add("--model", nargs="+", default=MODELS, metavar="NAME", help=f"(default: {' '.join(MODELS)})")
    add("--device", default="auto", help="auto, cuda or cpu")
    add("--amp", action=switch, default=True, help="ours and torchvision's in bf16 (default: on)")
    add("--batch", type=COUNT, help="images of a call (default: latency and input 64; else 256 on a GPU, 16 on a CPU)")
    add("--pixels", type=COUNT, default=224, help="of an image's side (default: 224)")
    add("--compile", action=switch, help="torch.compile as well, minutes a network (default: on a GPU)")
    add("--rounds", type=COUNT, default=30, help="at most so many (default: 30)")
    add("--seconds", type=float, default=20.0, help="at most so long a comparison (default: 20)")
    add("--json", type=Path, metavar="FILE", help="keep every sample here, after each comparison")
    add("--report", action="store_true", help="measure nothing; write DIR/speed.md from DIR/speed-*.json")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="of --report (default: results)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parsed(argv)
    try:
        print(f"written: {page.write(args.results)}" if args.report else measure(args))
    except UserError as error:
        print(f"benchmarks.speed: error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace) -> str:
    """Everything asked for; what came out, as text."""
    import torch  # which takes seconds: --help, mistakes and --report do without

    from tools.assemble import choose_device
    from utils import processes

    device = processes.start(choose_device(args.device))
    if processes.world_size() > 1 and args.parts != ["step"]:
        raise UserError("under a launcher only the training step is measured: say --parts step")
    torch.backends.cudnn.benchmark = True
    results = Results.on(device)
    for what, measured in jobs(args, device):
        if processes.is_main():
            print(f"{what} …", file=sys.stderr, flush=True)
        try:
            results.groups += measured()
        except torch.cuda.OutOfMemoryError:
            print(f"{what}: left out, the GPU's memory is too small; try a smaller --batch", file=sys.stderr)
        if args.json and processes.is_main():
            results.write(args.json)
    processes.stop()
    return page.markdown([results]) if processes.is_main() else ""


def jobs(args: argparse.Namespace, device) -> Iterator[tuple[str, Callable]]:
    """What is measured, and how, in the order of the parts."""
    from benchmarks.speed import inputs, networks
    from utils import processes
    from utils.evaluate.timing import Effort

    cuda, usual = device.type == "cuda", args.batch or (256 if device.type == "cuda" else 16)
    # processes that measure together run the same rounds: only their number may decide
    least = args.rounds if processes.world_size() > 1 else min(5, args.rounds)
    effort = Effort(2, least, args.rounds, args.seconds)
    if "input" in args.parts:
        yield INPUT, partial(inputs.measure, args.batch or 64, effort)
    batches = {
        "step": {STEP: usual},
        "latency": {LATENCY: args.batch or 64, SWITCHING: 1, SINGLE: 1},
        "eval": {ALL: usual},
    }
    for title, batch in (pair for part in args.parts for pair in batches.get(part, {}).items()):
        for name in args.model:
            compiled = cuda if args.compile is None else args.compile
            case = networks.Case(name, batch, args.pixels, device, args.amp, compiled)
            how = networks.steps if title == STEP else partial(networks.forwards, title)
            yield f"{title}, {name}", lambda how=how, case=case: [how(case, effort)]


if __name__ == "__main__":
    sys.exit(main())
