"""Runs a network's sub-networks in every way that the device has, by turns, and reads clocks and counters meanwhile."""

import argparse
import copy
import importlib
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision

import methods
import models
import train_adn
from deploy import energy
from deploy.profile import QUANTILES, Profile, Row
from utils.data.device import OnDevice
from utils.data.loading import Batch
from utils.errors import UserError
from utils.evaluate.accuracy import running
from utils.evaluate.latency import Effort, take_turns
from utils.flags import arguments
from utils.flags.data import fill_defaults
from utils.flags.evaluation import chosen
from utils.setup import Machine


class Network(NamedTuple):
    """A network on its device, as train_adn.py's flags describe it."""

    model: models.AdaptiveDepth
    args: argparse.Namespace
    machine: Machine
    on_device: OnDevice
    classes: list[str] | None  # their names, where the weights know them


def load(flags: Sequence[str], threads: int | None = None) -> Network:
    """Without --weights a network of random ones, which is as fast."""
    if threads:
        torch.set_num_threads(threads)
    args = arguments.parser(methods).parse_args(["--test-only", *flags])
    try:
        saved = train_adn.saved_weights(args) if args.weights or args.resume else None
        fill_defaults(args, saved.settings if saved else {})
        machine = train_adn.start(args)
        model = train_adn.build(args, models.num_classes(saved.state) if saved else 1000, args.val_crop_size, saved)
    except models.WeightsError as error:
        raise UserError(str(error)) from None
    return Network(model, args, machine, machine.place(model, args.channels_last), saved.classes if saved else None)


def measure(args: argparse.Namespace, flags: Sequence[str]) -> Profile:
    network = load(flags, args.threads)
    model, device, size = network.model, network.machine.device, network.args.val_crop_size
    words = {model.name(subnet): subnet for subnet in chosen(model, args.subnets)}
    subnets = {name: model.cost(subnet, model.size(subnet) or size)._asdict() for name, subnet in words.items()}
    threads, cuda = torch.get_num_threads(), device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU, {threads} threads"
    about = {"model": network.args.model, "weights": network.args.weights, "image_size": size, "device": name}
    about |= {"threads": threads, "precision": network.machine.precision, "torch": torch.__version__}
    about |= {"torchvision": torchvision.__version__}
    if args.file and cuda:
        raise UserError(
            "--file: say --device cpu, so that the clock is not the GPU's; the runtime takes its own device"
        )
    energies = Energies(args.energy_seconds, device)
    effort, rows = Effort(warm_up=3, at_least=5, at_most=args.rounds, seconds=args.seconds), []
    with running(model, network.machine.autocast):
        calls = {}
        for batch in sorted(set(args.batches)):
            calls |= ways_of(network, words, batch, args)
        times = take_turns(calls, device, effort, waiting=True)
        for (name, way, batch), call in calls.items():
            found = {"subnet": name, "way": way, "batch": batch, **figures(times[name, way, batch], batch)}
            found["joules_per_image"] = energies.joules(call, batch)
            if cuda and way in ("eager", "plain", "compiled"):  # a graph's memory was taken when it was recorded
                found["peak_mib"] = peak(call)
            rows.append(Row(**found))
    about["rounds"] = len(next(iter(times.values())))
    return Profile(about | energies.about, subnets, rows)


def ways_of(network: Network, words: dict[str, Any], batch: int, args: argparse.Namespace) -> dict[tuple, Callable]:
    """A call for each sub-network and way, all on one batch of random images, of the sub-network's size."""
    crop, model = network.args.val_crop_size, network.model
    sizes = dict.fromkeys(model.size(subnet) or crop for subnet in words.values())
    random = [torch.randint(256, (batch, 3, size, size), dtype=torch.uint8) for size in sizes]
    views, fast = next(network.on_device([Batch(random, torch.zeros(batch), [])])).images, model
    images = {subnet: model.images_for(views, subnet) for subnet in words.values()}
    if "compiled" in args.ways:
        fast = copy.deepcopy(model)
        fast.compile()
    make = {
        "eager": lambda subnet: partial(model, images[subnet], subnet),
        "plain": lambda subnet: partial(model.extract(subnet), images[subnet]),
        "compiled": lambda subnet: partial(fast, images[subnet], subnet),
        "graph": lambda subnet: recorded(partial(model, images[subnet], subnet)),
    }
    calls = {(name, way, batch): make[way](subnet) for name, subnet in words.items() for way in args.ways}
    if args.file:
        run, pixels = exported(args.file), {subnet: view.contiguous() for subnet, view in images.items()}
        if len(words) > 1:
            first, *_, last = words.values()
            if run(pixels[first], first).equal(run(pixels[last], last)):
                raise UserError(f"--file {args.file}: holds one network; name it by --subnets")
        calls |= {(name, "file", batch): partial(run, pixels[subnet], subnet) for name, subnet in words.items()}
    return calls


def recorded(call: Callable[[], Any]) -> Callable[[], None]:
    """The call as a CUDA graph."""
    if not torch.cuda.is_available():
        raise UserError("--ways graph: needs a CUDA GPU")
    for _ in range(3):  # what is chosen and allocated in the first calls must not be recorded
        call()
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        call()
    return graph.replay


def exported(file: Path) -> Callable[[torch.Tensor, Any], Any]:
    """A file that deploy.export wrote, in its runtime."""
    kinds = {".onnx": "onnx", ".pte": "executorch", ".pt2": "torch"}
    if (kind := kinds.get(file.suffix)) is None:
        raise UserError(f"--file {file}: its name ends in none of {' '.join(kinds)}")
    settings = {"threads": torch.get_num_threads()} if kind == "onnx" else {}
    try:
        return importlib.import_module(f"deploy.to_{kind}").runner(file, **settings)
    except ImportError as error:
        raise UserError(f"--file {file}: pip install -e '.[{kind}]' ({error})") from None
    except Exception as error:  # of classes that only the runtime knows
        raise UserError(f"--file {file}: {' '.join(str(error).split())[:300]}") from None


def figures(times: list[float], batch: int) -> dict[str, Any]:
    ms = {str(quantile): round(float(np.quantile(times, quantile / 100)), 4) for quantile in QUANTILES}
    return {"ms": ms, "images_per_s": round(1000 * batch / ms["50"], 2)}


class Energies:
    """Joules of calls, idle power included, where there is a counter; else `about` says why not."""

    def __init__(self, seconds: float, device: torch.device) -> None:
        self.seconds, self.cuda, self.meter = seconds, device.type == "cuda", None
        self.about: dict[str, Any] = {"energy": "not measured: --energy-seconds 0"}
        if seconds:
            try:
                gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}" if self.cuda else None
                self.meter = energy.find(gpu)
                idle = energy.window(self.meter, partial(time.sleep, 0.05), seconds).watts
                self.about = {"energy": self.meter.name, "idle_watts": round(idle, 3)}
            except energy.NotMeasured as error:
                self._give_up(error)

    def joules(self, call: Callable[[], object], images: int) -> float | None:
        """Per image."""
        if self.meter is None:
            return None
        wait = torch.cuda.synchronize if self.cuda else int
        try:
            found = energy.window(self.meter, lambda: (call(), wait()), self.seconds)
        except energy.NotMeasured as error:
            return self._give_up(error)
        return found.watts * found.seconds / found.calls / images

    def _give_up(self, why: Exception) -> None:
        self.meter, self.about = None, {"energy": f"not measured: {why}"}


def peak(call: Callable[[], object]) -> float:
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 2**20
