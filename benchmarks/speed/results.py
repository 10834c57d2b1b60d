"""What was measured, as JSON keeps it: calls that took turns, with every sample; and results/speed.md, made of that."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from deploy.latency import cpu_name
from utils.errors import UserError
from utils.files import whole_file

STEP, LATENCY, SWITCHING, ALL, INPUT = PARTS = ("step", "latency", "switching", "all", "input")
ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
OPENING = """# Speed

Written by `python -m benchmarks.speed --report` from results/speed-*.json, which hold every sample. Calls took turns in
one process, round by round, under one setting of the allocator. A time is the median over the rounds, a ratio the
median of the rounds' ratios, quartiles in brackets; *by MACs* it is what multiply-accumulates say. All in bf16, if no
other type is named. *Step*: *ours* as `train_adn.py` makes it, *alone* the same for the super-net by itself (`--method
individual`), *reference* the official implementation's way, rebuilt from a description of it. *Latency*: *plain* is
torchvision's network. *Switching*: sixteen calls on one image. *Input*: from JPEG files to tensors, on one core.

| what | of | goal | measured | reached |
|---|---|---|---|---|"""
RATE, MEMORY = "ADN steps, images/s on one H200", "peak memory of a step / reference's"
AMP, COST = "speed of a step / reference's in fp16", "time of an ADN step / of the super-net alone"
WALK, INPUTS = "all sub-networks in one walk / in separate runs", "input, images/s / classic chain's"
GOALS = (  # goal, devices, part, of what, way / way, sign, bound
    (RATE, "cuda", STEP, "resnet50", "ours", "", "≥", 2500),
    (AMP, "cuda", STEP, "resnet50", "reference fp16", "ours fp16", "≥", 1.8),
    (AMP, "cuda", STEP, "vit_b_16", "reference fp16", "ours fp16", "≥", 1.3),
    (AMP, "cuda", STEP, "swin_t", "reference fp16", "ours fp16", "≥", 1.3),
    ("speed of a step / reference's recipe", "cuda", STEP, "resnet50", "reference fp32", "ours", "≥", 2.5),
    (MEMORY, "cuda", STEP, "resnet50", "ours fp16", "reference fp16", "≤", 1.0),
    (MEMORY, "cuda", STEP, "vit_b_16", "ours fp16", "reference fp16", "≤", 1.0),
    (COST, "cuda", STEP, "resnet50", "ours", "alone", "≤", 1.63),
    (COST, "cpu", STEP, "resnet50", "ours", "alone", "≤", 1.63),
    ("latency of base-net / super-net", "cpu cuda", LATENCY, "resnet50", "TTTT", "FFFF", "≤", 0.65),
    (WALK, "cpu cuda", ALL, "resnet50", "one walk", "separate runs", "≤", 0.47),
    (WALK, "cpu cuda", ALL, "swin_t", "one walk", "separate runs", "≤", 0.53),
    (INPUTS, "cpu cuda", INPUT, "train plain", "classic", "ours, tensor", "≥", 1.6),
    (INPUTS, "cpu cuda", INPUT, "train ta_wide", "classic", "ours, tensor", "≥", 1.4),
)


@dataclass
class Group:
    """Calls that took turns: for each way its milliseconds, one sample a round, the same number for all."""

    part: str
    case: str  # of which network, or of which input
    batch: int
    samples: dict[str, list[float]]  # the others are compared with the first way
    macs: dict[str, int] = field(default_factory=dict)  # multiply-accumulates of the call, for one image
    memory: dict[str, int] = field(default_factory=dict)  # peak bytes on the GPU
    about: dict[str, Any] = field(default_factory=dict)  # settings

    def ratio(self, over: str, under: str) -> tuple[float, ...]:
        """Quartiles of over / under, round by round, so that what slows a whole round does not count."""
        return quartiles([a / b for a, b in zip(self.samples[over], self.samples[under], strict=True)])


def quartiles(values: list[float]) -> tuple[float, ...]:
    return tuple(quantiles(values, n=4, method="inclusive")) if len(values) > 1 else tuple(values) * 3


@dataclass
class Results:
    """Everything measured in one run; `machine` is what the numbers depend on beside the code."""

    machine: dict[str, Any]
    groups: list[Group] = field(default_factory=list)

    @classmethod
    def on(cls, device: Any) -> "Results":
        import torch
        import torchvision

        name = f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}"
        if device.type == "cuda":
            name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
        versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
        allocator = {name: value for name, value in sorted(os.environ.items()) if name.startswith(ALLOCATOR)}
        return cls({"device": device.type, "name": name, "versions": versions, "allocator": allocator})

    @classmethod
    def read(cls, path: Path) -> "Results":
        try:
            content = json.loads(path.read_text())
            return cls(content["machine"], [Group(**group) for group in content["groups"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a file that --json wrote ({error}); measure it anew") from None


def markdown(files: list[Results]) -> str:
    lines = [OPENING]
    for what, devices, part, case, over, under, sign, bound in GOALS:
        fitting = [results for results in files if results.machine["device"] in devices]
        groups = [g for results in fitting for g in results.groups if (g.part, g.case) == (part, case)]
        group = next((g for g in groups if over in g.samples and g.about.get("processes", 1) == 1), None)
        cells = "not measured | " if fitting else f"needs {devices} | "
        if group:
            if what == RATE:
                values = quartiles([1000 * group.batch / ms for ms in group.samples[over]])
            else:
                memory = what == MEMORY
                values = (group.memory[over] / group.memory[under],) * 3 if memory else group.ratio(over, under)
            reached = values[1] >= bound if sign == "≥" else values[1] <= bound
            cells = f"{spread(values)} | {'yes' if reached else '**no**'}"
        lines.append(f"| {what} | {case} | {sign} {bound:g} | {cells} |")
    return "\n".join([*lines, *(line for results in files for line in tables(results))]) + "\n"


def tables(results: Results) -> list[str]:
    allocator = [f"{name}={value}" for name, value in results.machine["allocator"].items()] or ["as the system sets it"]
    lines = ["\n## {name}\n\n{versions}; allocator: ".format(**results.machine) + ", ".join(allocator)]
    for part, group in ((part, group) for part in PARTS for group in results.groups if group.part == part):
        settings = "".join(f", {name} {value}" for name, value in group.about.items())
        lines.append(f"\n**{part.capitalize()}**: {group.case}, batch {group.batch}{settings}\n")
        lines += ["| way | ms | time / first way's | by MACs | images/s | peak GiB |", "|---" * 6 + "|"]
        first = next(iter(group.samples))
        for way, samples in group.samples.items():
            macs = f"{group.macs[way] / group.macs[first]:.2f}" if way in group.macs else ""
            rate = f"{1000 * group.batch / quartiles(samples)[1]:.0f}" if part in (STEP, INPUT) else ""
            peak = f"{group.memory[way] / 2**30:.1f}" if way in group.memory else ""
            cells = (way, spread(quartiles(samples)), spread(group.ratio(way, first)), macs, rate, peak)
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def spread(values: tuple[float, ...]) -> str:
    digits = 0 if values[1] >= 100 else 1 if values[1] >= 10 else 2
    return "{1:.{d}f} ({0:.{d}f}–{2:.{d}f})".format(*values, d=digits)


def write(folder: Path) -> Path:
    files = [Results.read(path) for path in sorted(folder.glob("speed-*.json"))]
    if not files:
        raise UserError(f"{folder}: no speed-*.json there; measure first, with --json {folder}/speed-cpu.json")
    with whole_file(page := folder / "speed.md") as file:
        file.write(markdown(files).encode())
    return page
