"""What was measured: groups of calls that took turns, as samples; medians, spreads and ratios follow from them."""

import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torchvision


@dataclass
class Group:
    """Calls that took turns: for each name its samples, one per round, the same number for all."""

    part: str
    title: str
    model: str
    batch: int
    samples: dict[str, list[float]]
    unit: str = "ms"
    macs: dict[str, int] = field(default_factory=dict)  # of one image, in the same call
    memory: dict[str, int] = field(default_factory=dict)  # peak bytes on the GPU
    about: dict[str, str] = field(default_factory=dict)  # settings of this group

    def spread(self, name: str) -> tuple[float, float, float]:
        return quartiles(self.samples[name])

    def ratio(self, over: str, under: str) -> tuple[float, float, float]:
        """Quartiles of over / under, round by round, so that what slows a whole round does not count."""
        pairs = zip(self.samples[over], self.samples[under], strict=True)
        return quartiles([a / b for a, b in pairs])

    def by_macs(self, over: str, under: str) -> float | None:
        """What the ratio would be if time were proportional to multiply-accumulates."""
        known = over in self.macs and under in self.macs
        return self.macs[over] / self.macs[under] if known else None


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@dataclass
class Results:
    machine: dict[str, object]
    settings: dict[str, object]
    groups: list[Group] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # what → why

    def find(self, title: str, model: str, *names: str) -> Group | None:
        """The group in which all these names were measured."""
        for group in self.groups:
            if (group.title, group.model) == (title, model) and all(name in group.samples for name in names):
                return group
        return None

    def add_to(self, older: "Results") -> "Results":
        """Both together; what was measured again replaces what was there."""

        def key(group: Group) -> tuple:
            return group.title, group.model, group.batch, sorted(group.samples)

        again = [key(group) for group in self.groups]
        kept = [group for group in older.groups if key(group) not in again]
        done = {f"{group.title}, {group.model}" for group in self.groups}
        skipped = {what: why for what, why in older.skipped.items() if what not in done}
        return Results(self.machine, self.settings, kept + self.groups, skipped | self.skipped)

    def content(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def of(cls, content: dict) -> "Results":
        groups = [Group(**group) for group in content["groups"]]
        return cls(content["machine"], content["settings"], groups, content["skipped"])


def machine(device: torch.device) -> dict[str, object]:
    """What the numbers depend on beside the code."""
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "allocator": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _cpu_name() -> str:
    """As Linux calls it, or as Python does elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
