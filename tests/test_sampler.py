"""Nothing lost, nothing unequal, everything repeatable: at every small size, number of processes and of repeats."""

from collections import Counter

import pytest

from sampler import EvalSampler, EvenBatches, TrainSampler

SIZES = range(1, 301)


def epoch_of(size: int, epoch: int = 0, start: int = 0, world_size: int = 1, **kw) -> list[list[tuple[int, int, int]]]:
    shares = []
    for rank in range(world_size):
        sampler = TrainSampler(size, rank=rank, world_size=world_size, **kw)
        sampler.set_epoch(epoch, start)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler) - start
    return shares


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_an_epoch_shows_every_image_in_equal_shares(world_size):
    for size in SIZES:
        shares = epoch_of(size, world_size=world_size)
        assert len({len(share) for share in shares}) == 1
        keys = [key for share in shares for key in share]
        assert {index for _, index, _ in keys} == set(range(size))
        assert size <= len(keys) < size + world_size
        assert len(set(keys)) == len(keys)  # what fills the last share is looked at with other random numbers


@pytest.mark.parametrize("repeats", [2, 3, 4])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_repeated_augmentation_shows_each_image_that_often_in_as_many_epochs(repeats, world_size):
    for size in SIZES:
        seen = Counter()
        for epoch in range(repeats):
            shares = epoch_of(size, epoch, world_size=world_size, repeats=repeats)
            order = [key for together in zip(*shares, strict=True) for key in together]
            assert len(set(order)) == len(order)
            assert len(order) - size < world_size
            seen.update(index for _, index, _ in order[:size])
        assert seen == dict.fromkeys(range(size), repeats)


def test_repeats_of_an_image_go_to_different_processes():
    shares = epoch_of(40, world_size=4, repeats=4)
    for together in zip(*shares, strict=True):
        assert len({index for _, index, _ in together}) == 1
        assert [repeat for _, _, repeat in together] == [0, 1, 2, 3]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("repeats", [1, 3])
def test_an_interrupted_epoch_goes_on_where_it_stopped(world_size, repeats):
    whole = epoch_of(37, epoch=5, world_size=world_size, repeats=repeats)
    for start in range(len(whole[0]) + 1):
        rest = epoch_of(37, epoch=5, start=start, world_size=world_size, repeats=repeats)
        assert rest == [share[start:] for share in whole]


def test_order_follows_seed_and_epoch_alone():
    [first], [again] = epoch_of(100, epoch=3, seed=1), epoch_of(100, epoch=3, seed=1)
    orders = {tuple(i for _, i, _ in epoch_of(100, epoch=e, seed=s)[0]) for e in range(5) for s in range(5)}
    assert first == again
    assert len(orders) == 25
    assert {epoch for epoch, _, _ in first} == {3}


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_sees_each_image_exactly_once(world_size):
    for size in range(301):
        shares = [EvalSampler(size, rank, world_size) for rank in range(world_size)]
        assert sorted(index for share in shares for index in share) == list(range(size))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_million_images_are_shared_out_evenly():
    samplers = [TrainSampler(1_281_167, rank=rank, world_size=8, repeats=3) for rank in (0, 7)]
    first, last = ([index for _, index, _ in sampler] for sampler in samplers)
    assert len(first) == len(samplers[0]) == len(last)
    assert len(set(first) & set(last)) > 0  # three repeats of an image go to different processes
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(("size", "kw"), [(0, {}), (5, {"repeats": 0}), (5, {"rank": 2, "world_size": 2})])
def test_what_makes_no_sense_is_refused(size, kw):
    with pytest.raises(ValueError, match="no samples"):
        TrainSampler(size, **kw)


def test_a_start_beyond_the_epoch_is_refused():
    with pytest.raises(ValueError, match="start=6"):
        TrainSampler(5).set_epoch(0, start=6)


def test_batches_are_even_and_lose_nothing_wherever_the_epoch_is_resumed():
    for size in range(1, 40):
        sampler = TrainSampler(size, seed=1)
        for batch_size in (1, 2, 7, 16):
            batches = EvenBatches(sampler, batch_size)
            sampler.set_epoch(3)
            whole = list(batches)
            assert [key for batch in whole for key in batch] == list(sampler)
            assert len(whole) == len(batches) == -(-size // batch_size)
            sizes = [len(batch) for batch in whole]
            assert batch_size >= max(sizes)
            assert max(sizes) - min(sizes) <= 1
            for done in range(len(whole) + 1):
                sampler.set_epoch(3, start=sum(sizes[:done]))
                assert list(batches) == whole[done:]
