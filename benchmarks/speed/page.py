"""results/speed.md, the whole of it: what was to be reached, then every number with its spread."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.results import ALL, INPUT, LATENCY, STEP, Results, quartiles
from utils.errors import UserError
from utils.files import whole_file

OPENING = """# Speed

Written by `python -m benchmarks.speed --report` from results/speed-*.json, which hold every sample. Calls took turns in
one process, round by round, under one setting of the allocator. A time is the median over the rounds, a ratio the
median of the rounds' ratios, quartiles in brackets. *By MACs*: the ratio if time were proportional to
multiply-accumulates. *Plain* is torchvision's network alone in a plain loop with the same means (bf16, layout, fused
optimizer), *reference* the official implementation's way of a step, rebuilt from a description of it.

| what | of | goal | measured | reached |
|---|---|---|---|---|"""
RATE, MEMORY = "ADN steps, images/s on one H200", "peak memory of a step / reference's"
AMP, RECIPE = "speed of a step / reference's in fp16", "speed of a step / reference's recipe as written"
COST, DEPTH = "time of an ADN step / plain step", "latency of the base-net / super-net"
WALK, INPUTS = "all sub-networks in one walk / in separate runs", "input, images/s / classic chain's"
GOALS = (  # goal, devices, what was measured, of what, way / way, sign, bound
    (RATE, "cuda", STEP, "resnet50", "ours", "", "≥", 2500),
    (AMP, "cuda", STEP, "resnet50", "reference fp16", "ours fp16", "≥", 1.8),
    (AMP, "cuda", STEP, "vit_b_16", "reference fp16", "ours fp16", "≥", 1.3),
    (AMP, "cuda", STEP, "swin_t", "reference fp16", "ours fp16", "≥", 1.3),
    (RECIPE, "cuda", STEP, "resnet50", "reference fp32", "ours", "≥", 2.5),
    (MEMORY, "cuda", STEP, "resnet50", "ours fp16", "reference fp16", "≤", 1.0),
    (MEMORY, "cuda", STEP, "vit_b_16", "ours fp16", "reference fp16", "≤", 1.0),
    (COST, "cuda", STEP, "resnet50", "ours", "plain", "≤", 1.63),
    (COST, "cpu", STEP, "resnet50", "ours", "plain", "≤", 1.63),
    (DEPTH, "cpu cuda", LATENCY, "resnet50", "TTTT", "FFFF", "≤", 0.65),
    (WALK, "cpu cuda", ALL, "resnet50", "one walk", "separate runs", "≤", 0.47),
    (WALK, "cpu cuda", ALL, "swin_t", "one walk", "separate runs", "≤", 0.53),
    (INPUTS, "cpu cuda", INPUT, "train plain", "classic", "ours, tensor", "≥", 1.6),
    (INPUTS, "cpu cuda", INPUT, "train ta_wide", "classic", "ours, tensor", "≥", 1.4),
)


def markdown(files: Sequence[Results]) -> str:
    lines = [OPENING]
    for what, devices, title, case, over, under, sign, bound in GOALS:
        fitting = [results for results in files if results.machine["device"] in devices]
        groups = [g for results in fitting for g in results.groups if (g.title, g.case) == (title, case)]
        group = next((g for g in groups if over in g.samples and g.about.get("processes", 1) == 1), None)
        cells = "not measured" if fitting else f"needs {devices}", ""
        if group:
            if what == RATE:
                values = quartiles([1000 * group.batch / ms for ms in group.samples[over]])
            else:
                memory = what == MEMORY
                values = (group.memory[over] / group.memory[under],) * 3 if memory else group.ratio(over, under)
            reached = values[1] >= bound if sign == "≥" else values[1] <= bound
            cells = spread(values), "yes" if reached else "**no**"
        lines.append(f"| {what} | {case} | {sign} {bound:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(line for results in files for line in tables(results))]) + "\n"


def tables(results: Results) -> list[str]:
    about = results.machine
    allocator = ", ".join(f"{name}={value}" for name, value in about["allocator"].items()) or "as the system sets it"
    lines = [f"\n## {about['name']}\n\n{about['versions']}; allocator: {allocator}."]
    for title in dict.fromkeys(group.title for group in results.groups):
        lines.append(f"\n**{title[0].upper()}{title[1:]}**\n")
        lines += ["| of | batch | way | ms | time / first way's | by MACs | images/s | peak GiB |", "|---" * 8 + "|"]
        for group in (group for group in results.groups if group.title == title):
            of = ", ".join([group.case, *(f"{name} {value}" for name, value in group.about.items())])
            first = next(iter(group.samples))
            for way, samples in group.samples.items():
                middle, ratio = quartiles(samples), spread(group.ratio(way, first))
                macs = f"{group.macs[way] / group.macs[first]:.2f}" if way in group.macs else ""
                rate = f"{1000 * group.batch / middle[1]:.0f}" if title in (STEP, INPUT) else ""
                peak = f"{group.memory[way] / 2**30:.1f}" if way in group.memory else ""
                lines.append(
                    "| " + " | ".join((of, str(group.batch), way, spread(middle), ratio, macs, rate, peak)) + " |"
                )
    return lines


def spread(values: tuple[float, ...]) -> str:
    low, middle, high = values
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def write(folder: Path) -> Path:
    files = [Results.read(path) for path in sorted(folder.glob("speed-*.json"))]
    if not files:
        raise UserError(f"{folder}: no speed-*.json there; measure first, with --json {folder}/speed-cpu.json")
    with whole_file(folder / "speed.md") as file:
        file.write(markdown(files).encode())
    return folder / "speed.md"
