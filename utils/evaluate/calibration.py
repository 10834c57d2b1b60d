"""Batch-norm statistics of each sub-network's own, estimated on training images that look as in the training.

The training's crops and augmentation, not an evaluation's: weights are used to these statistics, and a sub-network that
was trained with norms of its own is left as good as it was (results/calibration.md). They come in one fixed list of
batches, of which each process takes its share, so that the result does not depend on the number of processes.
"""

import argparse
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils import processes
from utils.data.loading import Data, make_loader, start_workers
from utils.errors import UserError
from utils.rng import derive

LEAST = 32  # images in a batch: its own spread is an estimate, and of a single image there may be none


def calibration_loader(data: Data, args: argparse.Namespace, workers: int) -> DataLoader:
    """This process's share of --calibrate batches of different training images."""
    size = min(max(args.batch_size, LEAST), len(data.train))
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(derive(args.seed, args.calibrate)))
    batches = order[: args.calibrate * size].split(size)
    whole = [batch.tolist() for batch in batches if len(batch) == size]
    share = whole[processes.rank() :: processes.world_size()]
    loader = make_loader(data.train, args, share, workers)
    start_workers(loader)
    return loader


def calibrate(
    model: nn.Module,
    loader: DataLoader,
    on_device: Callable,
    on_corrupt: str,
    subnets: Sequence[Hashable] | None = None,
) -> int:
    """Give sub-networks (None: all) statistics of their own. Returns of how many norms; 0 without batch norms."""

    def images() -> Iterator[Tensor | list[Tensor]]:
        for batch in on_device(loader):
            if batch.corrupt and on_corrupt == "error":
                raise UserError(f"cannot decode {batch.corrupt[0]}: mend or remove it, or say --on-corrupt skip")
            if len(batch.targets):
                yield batch.images

    return model.calibrate(images(), subnets, processes.sum_over_processes)
