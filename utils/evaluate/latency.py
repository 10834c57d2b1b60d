"""How long a sub-network takes for one call: the median of rounds in which all sub-networks take turns."""

import contextlib
import statistics
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from utils.evaluate.accuracy import eval_mode
from utils.evaluate.timing import take_turns


def latencies(
    model: nn.Module,
    subnets: Sequence[Hashable],
    images: Tensor,
    autocast: Callable = contextlib.nullcontext,
) -> dict[Hashable, float]:
    """Median milliseconds per call of each sub-network on `images`."""

    def call(subnet: Hashable) -> None:
        with autocast():
            model(images, subnet)

    with eval_mode(model), torch.inference_mode():
        times = take_turns({subnet: partial(call, subnet) for subnet in subnets}, images.device)
    return {subnet: statistics.median(measured) for subnet, measured in times.items()}
