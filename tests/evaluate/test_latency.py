"""Calls take turns, as often as asked; mixed precision casts each weight once for all of them."""

import time
from functools import partial

import torch

import models
from tests.casts import Casts
from utils.evaluate.accuracy import running
from utils.evaluate.latency import Effort, latencies, take_turns

CPU = torch.device("cpu")


def test_calls_take_turns_and_repeats_are_averaged():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = take_turns(calls, CPU, Effort(warm_up=1, at_least=2, at_most=2), repeats=2)
    assert order == list("aabb") * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    assert all(value > 0 for values in times.values() for value in values)


def test_ends_when_the_time_is_up_but_not_before_the_least():
    calls = {"nap": busy}
    assert len(take_turns(calls, CPU, Effort(warm_up=0, at_least=3, at_most=10**6, seconds=0))["nap"]) == 3
    measured = take_turns(calls, CPU, Effort(warm_up=0, at_least=1, at_most=2, seconds=60))["nap"]
    assert len(measured) == 2
    assert min(measured) >= 10


def test_one_thread_counts_processor_time_and_several_the_clock():
    once = Effort(warm_up=0, at_least=1, at_most=1)
    threads = torch.get_num_threads()
    try:
        for count, counted in ((1, False), (2, True)):
            torch.set_num_threads(count)
            (nap,) = take_turns({"nap": lambda: time.sleep(0.05)}, CPU, once)["nap"]
            assert (nap >= 50) == counted
            (nap,) = take_turns({"nap": lambda: time.sleep(0.05)}, CPU, once, waiting=True)["nap"]
            assert nap >= 50
    finally:
        torch.set_num_threads(threads)


def busy() -> None:
    """Keep a processor busy for 10 ms of its time."""
    start = time.thread_time()
    while time.thread_time() - start < 0.01:
        pass


def test_mixed_precision_casts_each_weight_once_for_all_calls():
    model = models.resnet20(num_classes=10, width=8)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    subnets, images = [model.subnets[0], model.subnets[-1]], torch.randn(1, 3, 32, 32)
    with Casts(model) as casts:
        found = latencies(model, subnets, images, autocast)
    assert all(milliseconds > 0 for milliseconds in found.values())
    assert set(casts.of_weights.values()) == {1}
    with Casts(model) as once, running(model, autocast):  # so that those counted above are really all
        for subnet in subnets:
            model(images, subnet)
    assert casts.of_weights == once.of_weights
