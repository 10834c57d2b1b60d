"""Meters read what counters that tick as the real ones say; without a counter there is a reason and no number."""

import sys
import threading
import time
import types
from functools import partial
from pathlib import Path

import pytest

from deploy import energy

WATTS = 50.0


class Ticking(threading.Thread):
    """Writes a counter at this power every few milliseconds, as the hardware does, until it is told to stop."""

    def __init__(self, write, every: float) -> None:
        super().__init__(daemon=True)
        self.write, self.every, self.done = write, every, threading.Event()

    def run(self) -> None:
        while not self.done.wait(self.every):
            self.write(WATTS * time.monotonic())

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()


def write(path: Path, content: object) -> None:
    """At once: a reader never finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (new := path.with_name(f"{path.name}.new")).write_text(f"{content}\n")
    new.rename(path)


def zone(sysfs: Path, number: str, name: str, joules: float, wrap: float = 1000.0) -> Path:
    folder = sysfs / "class/powercap" / f"intel-rapl:{number}"
    write(folder / "name", name)
    write(folder / "max_energy_range_uj", int(wrap * 1e6))
    write(folder / "energy_uj", int(joules * 1e6))
    return folder / "energy_uj"


def test_rapl_adds_packages_and_memory_and_knows_when_a_counter_begins_again(tmp_path):
    package, dram = zone(tmp_path, "0", "package-0", 990), zone(tmp_path, "0:1", "dram", 5)
    core, psys = zone(tmp_path, "0:0", "core", 100), zone(tmp_path, "1", "psys", 100)
    package.parent.with_name("intel-rapl-mmio:0").symlink_to(package.parent)  # the same package by another way
    meter = energy.find(None, tmp_path)
    assert meter.name == "RAPL, package-0 + dram"
    assert meter.read() == 0
    for path, joules in ((package, 995), (dram, 6), (core, 150), (psys, 150)):
        write(path, int(joules * 1e6))
    assert meter.read() == pytest.approx(6)
    write(package, int(3e6))  # past 1000
    assert meter.read() == pytest.approx(8)
    assert meter.read() == 0


def test_a_window_gives_the_power_between_its_ticks_across_a_wrap(tmp_path):
    wrap = 7.0  # joules: begins again several times
    file = zone(tmp_path, "0", "package-0", 0, wrap)
    calls = []
    with Ticking(lambda joules: write(file, int(joules % wrap * 1e6)), every=0.02):
        found = energy.window(energy.find(None, tmp_path), lambda: calls.append(time.sleep(0.01)), 0.6)
    assert found.watts == pytest.approx(WATTS, rel=0.2)
    assert found.calls == len(calls)
    assert 0.6 <= found.seconds < 2


def test_a_counter_that_stands_still_is_no_zero(tmp_path):
    zone(tmp_path, "0", "package-0", 5)
    with pytest.raises(energy.NotMeasured, match="0 ticks in"):
        energy.window(energy.find(None, tmp_path), partial(time.sleep, 0.01), 0.05)


def test_what_only_root_may_read_is_said(tmp_path, monkeypatch):
    file, read = zone(tmp_path, "0", "package-0", 5), Path.read_text

    def refuse(path: Path) -> str:  # the tests may run as root, whom no mode of a file keeps out
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(energy.NotMeasured, match="energy_uj is for root only"):
        energy.find(None, tmp_path)


def test_without_any_counter_there_is_a_reason(tmp_path, monkeypatch):
    with pytest.raises(energy.NotMeasured, match="no RAPL counters"):
        energy.find(None, tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(energy.NotMeasured, match="pip install nvidia-ml-py"):
        energy.find("GPU-1", tmp_path)


def rails(sysfs: Path, **of: tuple[int, int]) -> dict[str, Path]:
    chip = sysfs / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    for number, (name, (millivolts, milliamperes)) in enumerate(of.items(), 1):
        write(chip / f"in{number}_label", name)
        write(chip / f"in{number}_input", millivolts)
        write(chip / f"curr{number}_input", milliamperes)
    write(chip / "in7_label", "sum of shunt voltages")  # has no current
    return {name: chip / f"curr{number}_input" for number, name in enumerate(of, 1)}


def test_the_rails_of_a_jetson_are_summed_up_over_time(tmp_path):
    now = [100.0]
    clock = lambda: now[0]  # noqa: E731
    files = rails(tmp_path / "orin", VDD_IN=(5000, 2000), VDD_CPU_GPU_CV=(5000, 500))
    meter = energy.find("GPU-1", tmp_path / "orin", clock)
    assert meter.name == "INA3221, VDD_IN"  # it holds the other
    now[0] += 0.5
    assert meter.read() == pytest.approx(5)
    write(files["VDD_IN"], 4000)
    now[0] += 0.1
    assert meter.read() == pytest.approx(2)
    rails(tmp_path / "agx", VDD_GPU_SOC=(19000, 1000), VDD_CPU_CV=(19000, 500))
    meter = energy.find(None, tmp_path / "agx", clock)
    now[0] += 1
    assert meter.read() == pytest.approx(28.5)


class Nvml(types.ModuleType):
    """nvidia-ml-py as far as it is used: a counter of millijoules."""

    class NVMLError(Exception):
        pass

    def __init__(self, supported: bool = True) -> None:
        super().__init__("pynvml")
        self.supported, self.millijoules = supported, 123456

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1":
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.supported:
            raise self.NVMLError("Not Supported")
        return self.millijoules

    def tick(self, joules: float) -> None:
        self.millijoules = int(1000 * joules)


def test_a_gpus_counter_ticks_every_hundred_milliseconds(tmp_path, monkeypatch):
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = energy.find("GPU-1", tmp_path)
    assert meter.name == "NVML, GPU-1"
    nvml.millijoules += 2500
    assert meter.read() == pytest.approx(2.5)
    with Ticking(nvml.tick, every=0.1):
        found = energy.window(meter, partial(time.sleep, 0.01), 1.0)
    assert found.watts == pytest.approx(WATTS, rel=0.2)


def test_a_gpu_without_a_counter_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(supported=False))
    with pytest.raises(energy.NotMeasured, match="Not Supported"):
        energy.find("GPU-1", tmp_path)
    with pytest.raises(energy.NotMeasured, match="Not Found"):
        energy.find("GPU-2", tmp_path)
