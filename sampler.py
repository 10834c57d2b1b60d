"""Who sees which image, and when: a pure function of (seed, epoch, process), so that a run can stop and go on anywhere.

Training samples are keys (epoch, index, repeat). The dataset draws everything random about an image from its key, so
what an image looks like depends neither on the worker that loads it nor on how often the run was interrupted.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from utils.rng import derive

Key = tuple[int, int, int]


def as_key(key: Key | int) -> Key:
    """An evaluation's samples are indices alone: nothing about them is random."""
    return key if isinstance(key, tuple) else (0, key, 0)


class TrainBatches(Sampler[list[Key]]):
    """Shuffled training data in batches of one exact size, equally many for every process; no image is left out.

    Where the size does not divide, the last batch is filled with images of the same epoch's beginning, which are looked
    at with other random numbers. One size, since each further one costs a compilation and a search for convolutions,
    and a last batch of two images would ruin the running statistics. Only where a process has fewer images than a batch
    are its batches smaller.

    With `repeats` > 1 (repeated augmentation, Hoffer et al. 2019) each image comes several times in a row, and
    different repeats go to different processes. An epoch still has as many samples as the data, so it shows a part of
    the images; `repeats` epochs share one shuffled order and together show each image exactly `repeats` times.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0, repeats: int = 1):
        if min(size, batch_size, repeats) < 1 or not 0 <= rank < world_size:
            raise ValueError(f"no batches for {size=}, {batch_size=}, {repeats=}, {rank=}, {world_size=}")
        self.size, self.rank, self.world_size, self.seed, self.repeats = size, rank, world_size, seed, repeats
        self.share = -(-size // world_size)  # samples of an epoch that are this process's
        self.batch_size = min(batch_size, self.share)
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Go to an epoch; `start` of this process's samples have been seen, be it in batches of another size."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return -(-self.share // self.batch_size)  # of a whole epoch, wherever it is entered

    def remaining(self) -> int:
        return max(0, -(-(self.share - self.start) // self.batch_size))

    def __iter__(self) -> Iterator[list[Key]]:
        batches = self.remaining()
        cycle, part = divmod(self.epoch, self.repeats)
        shuffled = torch.randperm(self.size, generator=torch.Generator().manual_seed(derive(self.seed, cycle)))
        places = (torch.arange(batches * self.batch_size) + self.start) * self.world_size + self.rank
        wraps, places = places // self.size, places % self.size + part * self.size
        indices = shuffled[places // self.repeats].view(batches, self.batch_size)
        repeats = (places % self.repeats + wraps * self.repeats).view(batches, self.batch_size)
        for row in range(batches):
            pairs = zip(indices[row].tolist(), repeats[row].tolist(), strict=True)
            yield [(self.epoch, index, repeat) for index, repeat in pairs]
