"""Weights and images that are the same on every machine: each tensor is drawn from a generator seeded by its name.

The golden values in `tests/golden/` belong to networks filled like this, so the rule must not change.
"""

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

FIXED = ("num_batches_tracked", "relative_position_index", "relative_coords_table")
EMBEDDINGS = ("pos_embedding", "class_token", "relative_position_bias_table")
# How far a gradient's norm may be from the golden one, relatively. A step in train mode on four images magnifies
# rounding: the golden values, float32 by kernels of AVX-512, are up to 0.4 % from those of float64, and other kernels'
# are as far from either.
OF_GRADIENTS = 1e-3 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 1e-2


def golden_values(name: str) -> dict:
    """What a file of `tests/golden/` holds."""
    content = (Path(__file__).parent / "golden" / name).read_bytes()
    return json.loads(gzip.decompress(content) if name.endswith(".gz") else content)


def filled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the same names and shapes, filled by the rule."""
    return {
        name: tensor if name.endswith(FIXED) else _value(name, tensor.shape).to(tensor.dtype)
        for name, tensor in state.items()
    }


def _value(name: str, shape: torch.Size) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        return (0.2 * noise).exp()
    if name.endswith(("running_mean", "bias", *EMBEDDINGS)):
        return 0.1 * noise
    if name.endswith("logit_scale"):
        return 2 + 0.1 * noise
    if len(shape) == 1:  # the weight of a norm
        return 1 + 0.1 * noise
    return noise * noise[0].numel() ** -0.5  # to the last bit: a step in train mode magnifies rounding 10,000 times


def images(count: int, size: int, seed: int = 7) -> Tensor:
    """Standard normal images."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
