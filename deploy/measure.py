"""Runs a network's sub-networks in every way that the device has, by turns, and reads clocks and counters meanwhile."""

import argparse
import copy
import importlib
import platform
import time
from collections.abc import Callable, Iterable, Sequence
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

LARGE = 31 << 20  # bytes; glibc learns from blocks of up to 32 MiB


class Network(NamedTuple):
    """A network on its device, as train_adn.py's flags describe it."""

    model: models.AdaptiveDepth
    args: argparse.Namespace
    machine: Machine
    on_device: OnDevice
    classes: list[str] | None  # their names, where the weights know them


def load(flags: Sequence[str], threads: int | None = None) -> Network:
    """Without --weights a network of random ones, which is as fast. It has the statistics of its sub-networks' own."""
    if threads:
        torch.set_num_threads(threads)
    # Until a large block has been freed once, as by whoever has loaded images, glibc hands memory back after each call
    # and takes it anew: what is profiled would be a quarter slower than what serves.
    block = torch.empty(LARGE, dtype=torch.uint8)
    del block
    args = arguments.parser(methods).parse_args(["--test-only", *flags])
    try:
        saved = train_adn.saved_weights(args) if args.weights or args.resume else None
        fill_defaults(args, saved.settings if saved else {})
        machine = train_adn.start(args)
        model = train_adn.build(args, models.num_classes(saved.state) if saved else 1000, args.val_crop_size, saved)
        if args.calibrate:
            raise UserError("--calibrate: here are no training images; `train_adn.py --weights-out` keeps statistics")
        train_adn.use_statistics(args, machine, model, saved)
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
        calls, ways = {}, ways_of(network, words, args)
        for batch in sorted(set(args.batches)):
            calls |= on_images(network, ways, words, batch)
        times = take_turns(calls, device, effort, waiting=True)
        for (name, way, batch), call in calls.items():
            found = {"subnet": name, "way": way, "batch": batch, **figures(times[name, way, batch], batch)}
            found["joules_per_image"] = energies.joules(call, batch)
            if cuda and way in ("eager", "plain", "compiled"):  # a graph's memory was taken when it was recorded
                found["peak_mib"] = peak(call)
            rows.append(Row(**found))
    about["rounds"] = len(next(iter(times.values())))
    return Profile(about | energies.about, subnets, rows)


Way = Callable[[torch.Tensor, Any], Any]  # of running: images and sub-network → logits


def ways_of(network: Network, words: dict[str, Any], args: argparse.Namespace) -> dict[str, Way]:
    """The ways of running. Each holds its networks once, whatever the number of batches."""
    model, ways = network.model, dict.fromkeys(args.ways, network.model)
    if "graph" in ways and not torch.cuda.is_available():
        raise UserError("--ways graph: needs a CUDA GPU")
    if "plain" in ways:
        plain = {subnet: model.extract(subnet) for subnet in words.values()}
        ways["plain"] = lambda images, subnet: plain[subnet](images)
    if "compiled" in ways:
        ways["compiled"] = copy.deepcopy(model)
        ways["compiled"].compile()
    if args.file:
        ways["file"] = run = exported(args.file)
        first, *_, last = words.values()
        if len(words) > 1:
            pictures = (random_images(network, [subnet], 1)[subnet].contiguous() for subnet in (first, last))
            one, other = map(run, pictures, (first, last))
            if one.equal(other):
                raise UserError(f"--file {args.file}: holds one network; name it by --subnets")
    return ways


def random_images(network: Network, subnets: Iterable[Any], batch: int) -> dict[Any, torch.Tensor]:
    """For each sub-network a batch of its size, on the device; the same for all of one size."""
    model, crop = network.model, network.args.val_crop_size
    sizes = dict.fromkeys(model.size(subnet) or crop for subnet in subnets)
    draw = torch.Generator().manual_seed(0)
    random = [torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=draw) for size in sizes]
    views = next(network.on_device([Batch(random, torch.zeros(batch), [])])).images
    return {subnet: model.images_for(views, subnet) for subnet in subnets}


def on_images(
    network: Network, ways: dict[str, Way], words: dict[str, Any], batch: int
) -> dict[tuple[str, str, int], Callable[[], Any]]:
    """A call for each sub-network and way, on so many images."""
    images, calls = random_images(network, words.values(), batch), {}
    for way, run in ways.items():
        for name, subnet in words.items():
            view = images[subnet].contiguous() if way == "file" else images[subnet]
            if way == "graph" and network.model.image_macs(view, subnet) is not None:
                raise UserError(f"--ways graph: {name} is another network for each image, a graph is one")
            call = partial(run, view, subnet)
            calls[name, way, batch] = recorded(call) if way == "graph" else call
    return calls


def recorded(call: Callable[[], Any]) -> Callable[[], None]:
    """The call as a CUDA graph."""
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
    in_turn = [round(ms, 4) for ms in times]
    return {"ms": ms, "images_per_s": round(1000 * batch / ms["50"], 2), "times": in_turn}


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
    """MiB that a call takes beside weights and images."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
