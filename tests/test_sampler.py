"""Nothing lost, nothing unequal, everything repeatable: at every small size, number of processes and of repeats."""

from collections import Counter
from hashlib import sha256
from itertools import chain

import pytest

from sampler import TrainBatches

SIZES = range(1, 120)


def epoch_of(size: int, batch_size: int = 1, epoch: int = 0, start: int = 0, world_size: int = 1, **kw) -> list[list]:
    """The batches of every process."""
    shares = []
    for rank in range(world_size):
        batches = TrainBatches(size, batch_size, rank=rank, world_size=world_size, **kw)
        batches.set_epoch(epoch, start)
        shares.append(list(batches))
        assert start or len(shares[-1]) == len(batches)
    return shares


def keys_of(batches: list[list]) -> list[tuple[int, int, int]]:
    return list(chain.from_iterable(batches))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_an_epoch_shows_every_image_in_batches_of_one_size(world_size, batch_size):
    for size in SIZES:
        shares = epoch_of(size, batch_size, world_size=world_size)
        share = -(-size // world_size)
        assert {len(batch) for batches in shares for batch in batches} == {min(batch_size, share)}
        assert {len(batches) for batches in shares} == {-(-share // min(batch_size, share))}
        keys = keys_of(chain.from_iterable(shares))
        assert {index for _, index, _ in keys} == set(range(size))
        assert len(set(keys)) == len(keys)  # what fills a batch is looked at with other random numbers
        firsts = [key for batches in shares for key in keys_of(batches)[:share]]
        assert {index for _, index, _ in firsts} == set(range(size))


@pytest.mark.parametrize("repeats", [2, 3, 4])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_repeated_augmentation_shows_each_image_that_often_in_as_many_epochs(repeats, world_size):
    for size in SIZES:
        seen = Counter()
        for epoch in range(repeats):
            shares = epoch_of(size, 5, epoch, world_size=world_size, repeats=repeats)
            order = keys_of(zip(*map(keys_of, shares), strict=True))
            assert len(set(order)) == len(order)
            assert {index for _, index, _ in order} == {index for _, index, _ in order[:size]}
            seen.update(index for _, index, _ in order[:size])
        assert seen == dict.fromkeys(range(size), repeats)


def test_repeats_of_an_image_go_to_different_processes():
    shares = epoch_of(40, 5, world_size=4, repeats=4)
    for together in zip(*map(keys_of, shares), strict=True):
        assert len({index for _, index, _ in together}) == 1
        assert [repeat for _, _, repeat in together] == [0, 1, 2, 3]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 12, 64])
def test_an_interrupted_epoch_goes_on_where_it_stopped(world_size, repeats, batch_size):
    settings = {"epoch": 5, "world_size": world_size, "repeats": repeats}
    for whole, rank in zip(epoch_of(37, batch_size, **settings), range(world_size), strict=True):
        for done in range(len(whole) + 1):
            start = sum(map(len, whole[:done]))
            assert epoch_of(37, batch_size, start=start, **settings)[rank] == whole[done:]


@pytest.mark.parametrize("batch_size", [1, 5, 8])
def test_an_epoch_begun_in_batches_of_another_size_loses_no_image(batch_size):
    """So is a checkpoint whose --batch-size was another, or which was written when an epoch had two sizes."""
    order = [index for _, index, _ in keys_of(epoch_of(37, 1, epoch=2)[0])]
    for start in range(37 + 3):
        [rest] = epoch_of(37, batch_size, epoch=2, start=start)
        assert {len(batch) for batch in rest} <= {batch_size}
        assert [index for _, index, _ in keys_of(rest)][: len(order[start:])] == order[start:]
        assert len(keys_of(rest)) < len(order[start:]) + batch_size


@pytest.mark.parametrize("processes", [1, 3, 4])
def test_an_epoch_begun_in_another_number_of_processes_loses_no_image(processes):
    for done in range(5):
        begun = keys_of(chain.from_iterable(batches[:done] for batches in epoch_of(37, 4, epoch=2, world_size=2)))
        rest = epoch_of(37, 4, epoch=2, start=len(begun) // processes, world_size=processes)
        assert {index for _, index, _ in begun + keys_of(chain.from_iterable(rest))} == set(range(37))


GOLDEN = {  # size, processes, seed, epoch, repeats, rank → (index, repeat); written when batches had two sizes
    (10, 1, 0, 0, 1, 0): [(8, 0), (6, 0), (0, 0), (2, 0), (4, 0), (9, 0), (5, 0), (3, 0), (1, 0), (7, 0)],
    (11, 2, 3, 5, 1, 1): [(3, 0), (7, 0), (8, 0), (4, 0), (1, 0), (5, 1)],
    (11, 2, 3, 5, 3, 0): [(1, 1), (3, 0), (3, 2), (6, 1), (8, 0), (8, 2)],
    (9, 4, 7, 2, 2, 3): [(5, 1), (1, 1), (5, 2)],
}


@pytest.mark.parametrize("batch_size", [1, 3, 4, 256])
def test_the_order_is_that_of_earlier_versions(batch_size):
    for (size, processes, seed, epoch, repeats, rank), expected in GOLDEN.items():
        batches = TrainBatches(size, batch_size, rank=rank, world_size=processes, seed=seed, repeats=repeats)
        batches.set_epoch(epoch)
        assert keys_of(batches)[: len(expected)] == [(epoch, *pair) for pair in expected]


def test_a_million_images_come_in_the_order_of_earlier_versions():
    batches = TrainBatches(1_281_167, 256, rank=5, world_size=8, seed=1, repeats=3)
    batches.set_epoch(4)
    assert sha256(repr(keys_of(batches)[:160_146]).encode()).hexdigest()[:16] == "bcca3781e31f9144"
    assert {len(batch) for batch in batches} == {256}


def test_order_follows_seed_and_epoch_alone():
    first, again = epoch_of(100, 9, epoch=3, seed=1), epoch_of(100, 9, epoch=3, seed=1)
    orders = {tuple(i for _, i, _ in keys_of(epoch_of(100, 9, epoch=e, seed=s)[0])) for e in range(5) for s in range(5)}
    assert first == again
    assert len(orders) == 25
    assert {epoch for epoch, _, _ in keys_of(first[0])} == {3}


@pytest.mark.parametrize(
    ("sizes", "kw"), [((0, 1), {}), ((5, 0), {}), ((5, 1), {"repeats": 0}), ((5, 1), {"rank": 2, "world_size": 2})]
)
def test_what_makes_no_sense_is_refused(sizes, kw):
    with pytest.raises(ValueError, match="no batches"):
        TrainBatches(*sizes, **kw)
