"""Measures training steps, latency of sub-networks, switching, all of them at once, and the input pipeline, beside
torchvision's ways and the official implementation's. All take turns in one process, under one setting of the allocator:
that of the environment (MALLOC_…, LD_PRELOAD), which the results name.

    python -m benchmarks.speed --json results/speed-cpu.json     everything
    python -m benchmarks.speed --model resnet50 --parts step     a part of it, to look at
    python -m benchmarks.speed --report                          write results/speed.md from results/speed-*.json
    torchrun --nproc_per_node=2 -m benchmarks.speed --parts step     DistributedDataParallel on both sides
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.speed.results import ALL, INPUT, LATENCY, PARTS, STEP, SWITCHING, Results, markdown, write
from deploy.command import exit_code
from utils.errors import UserError
from utils.files import whole_file
from utils.flags.parsing import COUNT


def main(argv: Sequence[str] | None = None) -> int:
    form, switch = argparse.RawDescriptionHelpFormatter, argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"{' '.join(PARTS)} (default: all)")
    known = ("resnet50", "mobilenet_v2", "vit_b_16", "swin_t")
    add("--model", nargs="+", default=known, metavar="NAME", help=f"(default: {' '.join(known)})")
    add("--device", default="auto", help="auto, cuda or cpu")
    add("--batch", type=COUNT, help="images of a call (default: latency and input 64; else 256 on a GPU, 16 on a CPU)")
    add("--pixels", type=COUNT, default=224, help="of an image's side (default: 224)")
    add("--compile", action=switch, help="torch.compile as well, minutes a network (default: on a GPU)")
    add("--rounds", type=COUNT, default=30, help="at most so many (default: 30)")
    add("--seconds", type=float, default=20.0, help="at most so long a comparison (default: 20)")
    add("--json", type=Path, metavar="FILE", help="keep every sample here, after each comparison")
    add("--report", action="store_true", help="measure nothing; write DIR/speed.md from DIR/speed-*.json")
    add("--results", type=Path, default=Path("results"), metavar="DIR", help="of --report (default: results)")
    args = parser.parse_args(argv)
    return exit_code("benchmarks.speed", lambda: f"written: {write(args.results)}" if args.report else measure(args))


def measure(args: argparse.Namespace) -> str:
    """Everything asked for; what came out, as text."""
    import torch  # which takes seconds: --help, mistakes and --report do without

    from benchmarks.speed import ways
    from utils import processes, setup

    processes.connect()
    device = processes.join(setup.choose_device(args.device))
    if processes.world_size() > 1 and args.parts != [STEP]:
        raise UserError("under a launcher only the training step is measured: say --parts step")
    torch.backends.cudnn.benchmark = True
    # processes that measure together run the same rounds: only their number may decide
    effort = ways.Effort(2, args.rounds if processes.world_size() > 1 else 5, args.rounds, args.seconds)
    results, cuda, main_process = Results.on(device), device.type == "cuda", processes.is_main()
    usual, many = args.batch or (256 if cuda else 16), args.batch or 64
    how = {STEP: ways.steps, INPUT: ways.chains}
    batches = {STEP: (usual,), LATENCY: (many, 1), SWITCHING: (1,), ALL: (usual,), INPUT: (many,)}
    names = {part: ("photographs",) if part == INPUT else args.model for part in PARTS}
    for part, name, batch in ((p, name, batch) for p in args.parts for name in names[p] for batch in batches[p]):
        if main_process:
            print(f"{part}, {name} …", file=sys.stderr, flush=True)
        case = ways.Case(name, batch, args.pixels, device, cuda if args.compile is None else args.compile)
        try:
            results.groups += how.get(part, ways.forwards)(part, case, effort)
        except torch.cuda.OutOfMemoryError:
            print(f"{part}, {name}: left out, too large for the GPU; try a smaller --batch", file=sys.stderr)
        if args.json and main_process:
            with whole_file(args.json) as file:
                file.write(json.dumps(asdict(results)).encode())
    processes.leave()
    return markdown([results]) if main_process else ""


if __name__ == "__main__":
    sys.exit(main())
