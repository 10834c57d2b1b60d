"""How long calls take when they take turns.

Round after round every call runs once, so that a machine that grows hot or busy slows all of them alike, and two calls
can be compared round by round.
"""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Effort:
    """How often to measure: `at_most` rounds, or as many as fit in `seconds`; `at_least`; after `warm_up` rounds."""

    warm_up: int = 3
    at_least: int = 5
    at_most: int = 30
    seconds: float = 20.0


def take_turns(
    calls: Mapping[K, Callable[[], object]],
    device: torch.device,
    effort: Effort = Effort(),
    repeats: int = 1,
    agree: Callable[[bool], bool] = bool,
) -> dict[K, list[float]]:
    """Milliseconds of each call in each round. With `repeats` a call runs so often in one turn; its mean counts.

    Several processes that measure together give an `agree` that tells all of them the same answer.
    """
    times: dict[K, list[float]] = {key: [] for key in calls}
    clock = _cuda_ms if device.type == "cuda" else _cpu_ms
    for _ in range(effort.warm_up):
        for call in calls.values():
            clock(call, repeats)
    start = time.monotonic()
    elsewhere = False
    for done in range(effort.at_most):
        if agree(done >= effort.at_least and time.monotonic() - start > effort.seconds):
            break
        for key, call in calls.items():
            if isinstance(call, Elsewhere) != elsewhere:
                elsewhere = not elsewhere
                call()  # the processor's caches hold what another process left there
            times[key].append(clock(call, repeats))
    return times


class Elsewhere:
    """A call that is made, and timed, in a process of its own: it sees nothing of this process's memory and settings.

    `make(*arguments)` gives the call there.
    """

    def __init__(self, make: Callable[..., Callable[[], object]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.here, there = context.Pipe()
        context.Process(target=_serve, args=(there, torch.get_num_threads(), make, arguments), daemon=True).start()

    def __call__(self) -> None:
        self.milliseconds(1)

    def milliseconds(self, repeats: int) -> float:
        self.here.send(repeats)
        return self.here.recv()


def _serve(requests: Connection, threads: int, make: Callable[..., Callable[[], object]], arguments: tuple) -> None:
    torch.set_num_threads(threads)
    call = make(*arguments)
    with contextlib.suppress(EOFError):  # nobody asks any more
        while True:
            requests.send(_cpu_ms(call, requests.recv()))


def _cpu_ms(call: Callable[[], object], repeats: int) -> float:
    """With one thread it is processor time: what others take of the machine does not count."""
    if isinstance(call, Elsewhere):
        return call.milliseconds(repeats)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
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
