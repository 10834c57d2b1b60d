"""How long a sub-network takes for one call.

The sub-networks are measured in turn, round after round, so that a machine that grows hot or busy slows all of them
alike; the median of the rounds is reported.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from utils.evaluation import eval_mode

WARM_UP, ROUNDS = 3, 30
LONG_ENOUGH = 20.0  # seconds, after which AT_LEAST rounds are enough
AT_LEAST = 5


def latencies(
    model: nn.Module,
    subnets: Sequence[Hashable],
    images: Tensor,
    autocast: Callable = contextlib.nullcontext,
) -> dict[Hashable, float]:
    """Median milliseconds per call of each sub-network on `images`."""
    times: dict[Hashable, list[float]] = {subnet: [] for subnet in subnets}
    clock = _cuda_ms if images.is_cuda else _cpu_ms

    def call(subnet: Hashable) -> None:
        with autocast():
            model(images, subnet)

    with eval_mode(model), torch.inference_mode():
        for _ in range(WARM_UP):
            for subnet in subnets:
                call(subnet)
        start = time.monotonic()
        for done in range(ROUNDS):
            if done >= AT_LEAST and time.monotonic() - start > LONG_ENOUGH:
                break
            for subnet in subnets:
                times[subnet].append(clock(partial(call, subnet)))
    return {subnet: statistics.median(measured) for subnet, measured in times.items()}


def _cpu_ms(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def _cuda_ms(call: Callable[[], None]) -> float:
    """From an idle device, so that a small batch's time to launch counts, as it does for who waits for the answer."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
