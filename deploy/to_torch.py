"""torch.export: an ExportedProgram to load with torch alone; of all depths, called with `images` and `skip`."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, fx

from deploy.switch import Wanted, whole

FACTS = "adaptive_depth.json"  # an extra file in the archive


def save(wanted: Wanted, path: Path) -> None:
    program = whole(wanted)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # of this machine's files
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={FACTS: json.dumps(wanted.facts)})


def faults(path: Path) -> list[str]:
    return []


def runner(path: Path) -> Callable[[Tensor, tuple[bool, ...]], Tensor]:
    with open(path, "rb") as file:
        program = torch.export.load(file).module()
    switched = len(program.graph.find_nodes(op="placeholder")) > 1

    def run(images: Tensor, skip: tuple[bool, ...]) -> Tensor:
        with torch.no_grad():
            return program(images, torch.tensor(skip)) if switched else program(images)

    return run
