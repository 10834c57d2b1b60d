"""What was measured, as JSON keeps it: calls that took turns, with every sample. All else follows from the samples."""

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import whole_file

STEP, LATENCY, SINGLE, SWITCHING = "training step", "latency", "latency, batch 1", "switching"
ALL, INPUT = "all sub-networks", "input"
ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


@dataclass
class Group:
    """Calls that took turns: for each way its milliseconds, one sample a round, the same number for all."""

    title: str  # what was measured
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
    return tuple(statistics.quantiles(values, n=4, method="inclusive")) if len(values) > 1 else tuple(values) * 3


@dataclass
class Results:
    """Everything measured in one run; `machine` is what the numbers depend on beside the code."""

    machine: dict[str, Any]
    groups: list[Group] = field(default_factory=list)

    @classmethod
    def on(cls, device: Any) -> "Results":
        import torch
        import torchvision

        cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "model name: CPU"
        name = cpu.partition("model name")[2].partition(":")[2].partition("\n")[0].strip()
        name += f", {torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}"
        if device.type == "cuda":
            name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
        versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
        allocator = {name: value for name, value in sorted(os.environ.items()) if name.startswith(ALLOCATOR)}
        versions += f", Python {platform.python_version()}"
        return cls({"device": device.type, "name": name, "versions": versions, "allocator": allocator})

    @classmethod
    def read(cls, path: Path) -> "Results":
        try:
            content = json.loads(path.read_text())
            return cls(content["machine"], [Group(**group) for group in content["groups"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a file that --json wrote ({error}); measure it anew") from None

    def write(self, path: Path) -> None:
        with whole_file(path) as file:
            file.write((json.dumps(asdict(self)) + "\n").encode())
