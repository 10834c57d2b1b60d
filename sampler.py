"""Who sees which image, and when: a pure function of (seed, epoch, process), so that a run can stop and go on anywhere.

The samplers hand the dataset keys (epoch, index, repeat). The dataset draws everything random about an image from its
key, so what an image looks like depends neither on the worker that loads it nor on how often the run was interrupted.
"""

from collections.abc import Iterator
from itertools import islice, repeat

import torch
from torch import Tensor
from torch.utils.data import Sampler

from utils.rng import derive

Key = tuple[int, int, int]


class TrainSampler(Sampler[Key]):
    """Shuffled training data, in equal shares for all processes; the shares wrap around if the size does not divide.

    With `repeats` > 1 (repeated augmentation, Hoffer et al. 2019) each image comes several times in a row, and
    different repeats go to different processes. An epoch still has as many samples as the data, so it shows a part of
    the images; `repeats` epochs share one shuffled order and together show each image exactly `repeats` times.
    """

    def __init__(self, size: int, *, rank: int = 0, world_size: int = 1, seed: int = 0, repeats: int = 1):
        if size < 1 or repeats < 1 or not 0 <= rank < world_size:
            raise ValueError(f"no samples for size={size}, repeats={repeats}, rank={rank}, world_size={world_size}")
        self.size, self.rank, self.world_size, self.seed, self.repeats = size, rank, world_size, seed, repeats
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Go to an epoch; `start` says how many of this process's samples have already been consumed."""
        if not 0 <= start <= len(self):
            raise ValueError(f"start={start} lies outside an epoch of {len(self)} samples")
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return -(-self.size // self.world_size)

    def __iter__(self) -> Iterator[Key]:
        indices, repeats = self._order(self.epoch)
        return zip(repeat(self.epoch), indices.tolist(), repeats.tolist())

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        cycle, part = divmod(epoch, self.repeats)
        shuffled = torch.randperm(self.size, generator=torch.Generator().manual_seed(derive(self.seed, cycle)))
        places = torch.arange(self.start, len(self)) * self.world_size + self.rank
        wraps, places = places // self.size, places % self.size + part * self.size
        # an image that is shown again only to fill the last share gets a repeat number, hence a look, of its own
        return shuffled[places // self.repeats], places % self.repeats + wraps * self.repeats


class EvenBatches(Sampler[list[Key]]):
    """The sampler's order in as few batches as possible, of equal size (or one less): none at the end is tiny.

    A last batch of two images would shake the network and ruin its batch norms' statistics once an epoch.
    """

    def __init__(self, sampler: TrainSampler, batch_size: int):
        self.sampler, self.batch_size = sampler, batch_size

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        size, larger = divmod(len(self.sampler), len(self))
        keys, consumed = iter(self.sampler), self.sampler.start
        for number in range(len(self)):
            ahead = size + (number < larger)
            skipped = min(consumed, ahead)
            consumed -= skipped
            if ahead > skipped:
                yield list(islice(keys, ahead - skipped))


class EvalSampler(Sampler[int]):
    """Each index exactly once over all processes. Nothing is padded: the shares may differ by one."""

    def __init__(self, size: int, rank: int = 0, world_size: int = 1):
        self.indices = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
