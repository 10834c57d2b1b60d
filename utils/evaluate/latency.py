"""How long calls take when they take turns: the one way of timing in the project.

Round after round every call runs once, so that a machine that grows hot or busy slows all of them alike, and two calls
can be compared round by round.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from utils.evaluate.accuracy import running

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Effort:
    """After `warm_up` rounds, as many as fit in `seconds`, but `at_least` and `at_most` so many."""

    warm_up: int = 3
    at_least: int = 5
    at_most: int = 30
    seconds: float = 20.0


def latencies(
    model: nn.Module,
    subnets: Sequence[Hashable],
    images: Tensor | list[Tensor],
    autocast: Callable = contextlib.nullcontext,
) -> dict[Hashable, float]:
    """Median milliseconds per call of each sub-network on `images`, of several views on that of its size."""
    views = {subnet: model.images_for(images, subnet) for subnet in subnets}
    with running(model, autocast):
        calls = {subnet: partial(model, view, subnet) for subnet, view in views.items()}
        times = take_turns(calls, next(model.parameters()).device)
    return {subnet: statistics.median(measured) for subnet, measured in times.items()}


def take_turns(
    calls: Mapping[K, Callable[[], object]],
    device: torch.device,
    effort: Effort = Effort(),
    repeats: int = 1,
    waiting: bool = False,
) -> dict[K, list[float]]:
    """Milliseconds of each call in each round. With `repeats` a call runs so often in one turn; its mean counts.

    `waiting` counts all the time that someone waits for the answer, also what others take of the machine.
    """
    times: dict[K, list[float]] = {key: [] for key in calls}
    clock = _cuda_ms if device.type == "cuda" else partial(_cpu_ms, waiting=waiting)
    for _ in range(effort.warm_up):
        for call in calls.values():
            clock(call, repeats)
    start = time.monotonic()
    for done in range(effort.at_most):
        if done >= effort.at_least and time.monotonic() - start > effort.seconds:
            break
        for key, call in calls.items():
            times[key].append(clock(call, repeats))
    return times


def _cpu_ms(call: Callable[[], object], repeats: int, waiting: bool) -> float:
    """With one thread it is processor time: what others take of the machine does not count."""
    clock = time.thread_time if torch.get_num_threads() == 1 and not waiting else time.perf_counter
    start = clock()
    for _ in range(repeats):
        call()
    return 1000 * (clock() - start) / repeats


def _cuda_ms(call: Callable[[], object], repeats: int) -> float:
    """From an idle device, so that a small batch's time to launch counts, as it does for who waits for the answer."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats
