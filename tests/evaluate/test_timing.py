"""Calls take turns, as often as asked."""

import time

import torch

from utils.evaluate.timing import Effort, Elsewhere, take_turns

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
    finally:
        torch.set_num_threads(threads)


def busy() -> None:
    """Keep a processor busy for 10 ms of its time."""
    start = time.thread_time()
    while time.thread_time() - start < 0.01:
        pass


def make_nap(seconds: float):
    return lambda: time.sleep(seconds)


def test_a_call_elsewhere_is_timed_there():
    threads = torch.get_num_threads()
    try:
        for count, slept in ((1, False), (2, True)):
            torch.set_num_threads(count)
            calls = {"nap": Elsewhere(make_nap, 0.05)}
            (nap,) = take_turns(calls, CPU, Effort(warm_up=0, at_least=1, at_most=1), repeats=2)["nap"]
            assert (nap >= 50) == slept
    finally:
        torch.set_num_threads(threads)
