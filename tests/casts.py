"""What a block of code makes torch do that costs time without a result: casts of weights, waiting for the device."""

from collections import Counter

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class Casts(TorchDispatchMode):
    """Counts how often each of a model's weights is cast to another type, and notes operators that wait."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.of_weights: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = self.names.get(id(args[0])) if args else None
        if name and isinstance(result, torch.Tensor) and result.dtype != args[0].dtype:
            self.of_weights[name] += 1
        if any(word in str(function) for word in WAITING):
            self.waits.append(str(function))
        return result
