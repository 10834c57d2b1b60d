"""How long a training step of each method takes, in turns: a whole run's seconds depend on what else went on."""

import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from utils.evaluate.timing import Effort, take_turns

import train_adn
from tools import assemble
from tools.evidence.grid import Grid, Run, Setting
from tools.evidence.runner import machine
from utils import memory
from utils.data.loading import Batch, Data
from utils.flags import arguments
from utils.flags.data import fill_defaults
from utils.train import engine
from utils.train.log import Meters

CLASSES = [str(number) for number in range(10)]
EFFORT = Effort(warm_up=2, at_least=10, at_most=30, seconds=15)


def measure_all(grid: Grid, device_name: str) -> list[dict[str, Any]]:
    """Of every setting and seed. On a CPU with one thread, as a run has when there are as many runs as cores."""
    if assemble.choose_device(device_name).type == "cpu":
        torch.set_num_threads(1)
        memory.keep_freed()
    return [measure(setting, seed, device_name) for seed in grid.seeds for setting in grid.settings]


def measure(setting: Setting, seed: int, device_name: str = "auto", effort: Effort = EFFORT) -> dict[str, Any]:
    """Milliseconds of a step in each round, for each of the setting's methods."""
    device = assemble.choose_device(device_name)
    steps = {method: training_step(Run(setting, method, seed), device) for method in setting.methods}
    times = take_turns(steps, device, effort, repeats=5) if device.type == "cuda" else on_processor(steps, effort)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    about = {"setting": setting.name, "seed": seed, "machine": machine(name), "threads": torch.get_num_threads()}
    return {**about, "milliseconds": {method: [round(ms, 3) for ms in rounds] for method, rounds in times.items()}}


def on_processor(calls: Mapping[str, Callable[[], None]], effort: Effort) -> dict[str, list[float]]:
    """Milliseconds of processor time, which other programs on the machine do not change; in turns as well."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.process_time()
    for number in range(effort.warm_up + effort.at_most):
        if number >= effort.warm_up + effort.at_least and time.process_time() - begin > effort.seconds:
            break
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number >= effort.warm_up:
                times[name].append(1000 * (time.process_time() - start))
    return times


def training_step(run: Run, device: torch.device) -> Callable[[], None]:
    """One step of the training command, on a batch as its loader hands it over."""
    with tempfile.TemporaryDirectory() as folder:  # needed while the run is made: nothing is saved
        args = arguments.parser().parse_args([*run.training, "--output-dir", folder])
        args.device = str(device)
        fill_defaults(args)
        assemble.seed_everything(args)
        model = assemble.build_model(args, len(CLASSES)).to(device)
        training = train_adn.make_run(args, device, Data(None, None, CLASSES, "random images"), model)
    model.train()
    meters = Meters(len(training.names), device)
    size = args.train_crop_size
    images = torch.randint(256, (args.batch_size, 3, size, size), dtype=torch.uint8)
    batch = Batch(images, torch.randint(len(CLASSES), (args.batch_size,)), [])
    return lambda: engine.take_step(training, [batch], meters)
