"""Energy from the counters that a machine has: NVML, RAPL, a Jetson's INA3221. Nothing is estimated.

A meter's `read` gives the joules since it was last read. Counters tick every 1 to 100 ms: a thread watches them, and a
window's power is taken from its first tick to its last one.
"""

import importlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError

SAMPLING = 0.01  # seconds


class NotMeasured(UserError):
    """Why there is no energy."""


class Meter(NamedTuple):
    name: str
    read: Callable[[], float]


class Window(NamedTuple):
    watts: float
    seconds: float
    calls: int


def find(gpu: str | None, sysfs: Path = Path("/sys"), clock: Callable[[], float] = time.monotonic) -> Meter:
    """The meter of the GPU with this UUID, or of the processor; the rails of a Jetson are for both."""
    rails = sorted(sysfs.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*"))
    if rails:
        return ina3221(rails, clock)
    return nvml(gpu) if gpu else rapl(sysfs / "class/powercap")


def nvml(uuid: str) -> Meter:
    """Millijoules since the driver was loaded; GPUs from Volta on have the counter."""
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        raise NotMeasured("NVML needs the package nvidia-ml-py (pip install nvidia-ml-py)") from None
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        counter = _Counter(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000)
    except pynvml.NVMLError as error:
        raise NotMeasured(f"NVML has no energy counter for this GPU ({error})") from None
    return Meter(f"NVML, {uuid}", counter.read)


def rapl(folder: Path) -> Meter:
    """Packages and their memory. Cores and uncore are parts of a package; `psys` and intel-rapl-mmio count it again."""
    zones = [file.parent for file in sorted(folder.glob("intel-rapl:*/energy_uj"))]
    names = {zone: (zone / "name").read_text().strip() for zone in zones}
    wanted = [zone for zone, name in names.items() if name.startswith("package") or name == "dram"]
    if not wanted:
        raise NotMeasured(f"no RAPL counters in {folder}, no INA3221, no GPU asked for")
    try:
        counters = []
        for zone in wanted:
            wrap = int((zone / "max_energy_range_uj").read_text()) / 1e6
            counters.append(_Counter(lambda file=zone / "energy_uj": int(file.read_text()) / 1e6, wrap))
    except PermissionError as error:
        raise NotMeasured(f"{error.filename} is for root only: run as root, or let the user read it") from None
    return Meter(f"RAPL, {' + '.join(names[zone] for zone in wanted)}", lambda: sum(c.read() for c in counters))


class _Counter:
    """A counter of joules that begins again at `wrap`. It has to be read once in that time, which is minutes."""

    def __init__(self, joules: Callable[[], float], wrap: float = 0.0) -> None:
        self.joules, self.wrap, self.last = joules, wrap, joules()

    def read(self) -> float:
        now = self.joules()
        gone, self.last = now - self.last, now
        return gone + self.wrap if gone < 0 else gone


def ina3221(chips: list[Path], clock: Callable[[], float]) -> Meter:
    """Millivolts times milliamperes, a power: summed up over the time since the last reading.

    VDD_IN, or VIN, is the whole module where the board has such a rail; else the rails are added.
    """
    rails = {}
    for chip in chips:
        for label in sorted(chip.glob("in[0-9]*_label")):
            number = label.name.removeprefix("in").removesuffix("_label")
            files = chip / f"in{number}_input", chip / f"curr{number}_input"
            if all(file.exists() for file in files):
                rails[label.read_text().strip()] = files
    whole = {name: files for name, files in rails.items() if name in ("VDD_IN", "VIN", "POM_5V_IN")}
    rails = whole or rails
    if not rails:
        raise NotMeasured(f"{chips[0]}: an INA3221 without rails")
    last = [clock()]

    def read() -> float:
        milliwatts = sum(int(v.read_text()) * int(a.read_text()) / 1000 for v, a in rails.values())
        before, last[0] = last[0], clock()
        return milliwatts / 1000 * (last[0] - before)

    return Meter(f"INA3221, {' + '.join(rails)}", read)


def window(meter: Meter, work: Callable[[], object], seconds: float) -> Window:
    """Mean power while `work` is called again and again for so long, and how often it was."""
    ticks: list[tuple[float, float]] = []
    done, failed = threading.Event(), []

    def watch() -> None:
        total = 0.0
        try:
            meter.read()  # what came before
            while not done.wait(SAMPLING):
                joules = meter.read()
                total += joules
                if joules > 0:
                    ticks.append((time.monotonic(), total))
        except Exception as error:  # of a file or a library: said below, in the caller's thread
            failed.append(error)

    watcher = threading.Thread(target=watch)
    start, calls = time.monotonic(), 0
    watcher.start()
    try:
        while time.monotonic() < start + seconds:
            work()
            calls += 1
        end = time.monotonic()
    finally:
        done.set()
        watcher.join()
    if failed:
        raise NotMeasured(f"{meter.name}: {failed[0]}")
    if len(ticks) < 3:
        raise NotMeasured(f"{meter.name}: {len(ticks)} ticks in {end - start:.1f} s are too few; take longer windows")
    (first, joules), (last, more) = ticks[0], ticks[-1]
    return Window((more - joules) / (last - first), end - start, calls)
