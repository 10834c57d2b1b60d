"""Sub-networks at run time, in turn: latency of each, a batch of 1, all of them at once, switching between them."""

import contextlib
import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import models
from tools.bench.reference import convolutional
from tools.bench.results import Group
from tools.bench.step import Setup, as_of_old, build, macs_of, random_batch
from utils.evaluate.timing import Effort, take_turns

LATENCY, SINGLE, ALL, SWITCHING = "latency", "latency, batch 1", "all sub-networks", "switching"
SWITCHES = 8
PLAIN = "torchvision"


class Caller:
    """Forward passes of a network as its user runs them: evaluation mode, 16 bits if wanted, no gradients."""

    def __init__(self, setup: Setup, batch: int) -> None:
        self.setup = setup
        self.model = build(setup).eval()
        self.layout = torch.channels_last if convolutional(self.model) else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        images, _ = random_batch(replace(setup, batch=batch))
        self.images = images.to(setup.device).contiguous(memory_format=self.layout)
        self.batch = batch

    def of(self, function: Callable[..., object], *arguments: object) -> Callable[[], object]:
        """A call of `function` on the images."""

        def call() -> object:
            with torch.inference_mode(), self.autocast():
                return function(self.images, *arguments)

        return call

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.setup.device.type, dtype=torch.bfloat16, enabled=self.setup.amp)

    def group(self, title: str, calls: dict[str, Callable[[], object]], effort: Effort, macs: dict[str, int]) -> Group:
        part = "eval" if title == ALL else "latency"
        about = {"dtype": "bf16" if self.setup.amp else "fp32", "image": str(self.setup.size)}
        samples = take_turns(calls, self.setup.device, effort)
        return Group(part, title, self.setup.model, self.batch, samples, macs=macs, about=about)


def latency(setup: Setup, batch: int, effort: Effort) -> Group:
    """Every sub-network, and the plain network beside them."""
    caller = Caller(setup, batch)
    model = caller.model
    calls = {models.subnet_name(skip): caller.of(model, skip) for skip in model.subnets}
    calls[PLAIN] = caller.of(models.extract(model))
    macs = {models.subnet_name(skip): models.cost(model, skip, setup.size).macs for skip in model.subnets}
    macs[PLAIN] = macs[models.subnet_name(model.super_net)]
    return caller.group(LATENCY, calls, effort, macs)


def single(setup: Setup, effort: Effort, compiled: bool) -> Group:
    """Super-net and base-net on one image: eager, compiled, as a CUDA graph."""
    caller = Caller(setup, batch=1)
    calls, macs = {}, {}
    ends = {models.subnet_name(skip): skip for skip in (caller.model.super_net, caller.model.base_net)}
    fast = copy.deepcopy(caller.model)
    if compiled:
        fast.compile()
    for name, skip in ends.items():
        cost = models.cost(caller.model, skip, setup.size).macs
        calls[f"{name} eager"] = caller.of(caller.model, skip)
        if compiled:
            calls[f"{name} compiled"] = caller.of(fast, skip)
        if setup.device.type == "cuda":
            calls[f"{name} CUDA graph"] = graph(calls[f"{name} eager"])
        macs |= {call: cost for call in calls if call.startswith(name)}
    return caller.group(SINGLE, calls, effort, macs)


def graph(call: Callable[[], object]) -> Callable[[], None]:
    """The kernels of a call, recorded once and launched at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        call()
    return recorded.replay


def everything(setup: Setup, batch: int, effort: Effort) -> Group:
    """All sub-networks: by the tree walk, in runs of their own, and in the reference's runs (NCHW, fp32, waiting)."""
    caller = Caller(setup, batch)
    model, skips = caller.model, caller.model.subnets

    def separate(images: Tensor) -> None:
        for skip in skips:
            model(images, skip)

    calls = {
        "tree": caller.of(model.forward_all),
        "separate runs": caller.of(separate),
        "reference's runs": as_of_old(setup, reference_runs, batch),
    }
    apart = sum(models.cost(model, skip, setup.size).macs for skip in skips)
    macs = {"tree": macs_of(model, "forward_all", setup.size), "separate runs": apart, "reference's runs": apart}
    return caller.group(ALL, calls, effort, macs)


def reference_runs(setup: Setup, batch: int) -> Callable[[], None]:
    model = build(setup).eval()
    images = random_batch(replace(setup, batch=batch))[0].to(setup.device)

    def call() -> None:
        with torch.inference_mode():
            for skip in model.subnets:
                model(images, skip).argmax(1).sum().item()

    return call


def switching(setup: Setup, effort: Effort) -> Group:
    """Images one by one, with another sub-network each time, against the same calls sorted by sub-network."""
    caller = Caller(setup, batch=1)
    model = caller.model
    ends = [model.super_net, model.base_net]
    orders = {"alternating": ends * SWITCHES, "sorted": list(itertools.chain(*([skip] * SWITCHES for skip in ends)))}

    def run(order: list, images: Tensor) -> None:
        for skip in order:
            model(images, skip)

    calls = {name: caller.of(partial(run, order)) for name, order in orders.items()}
    cost = SWITCHES * sum(models.cost(model, skip, setup.size).macs for skip in ends)
    return caller.group(SWITCHING, calls, effort, dict.fromkeys(orders, cost))
