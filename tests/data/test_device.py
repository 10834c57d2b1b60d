"""What a loop sees of a loader through `OnDevice`: the same batches in the same order, at most one taken ahead."""

import pytest
import torch

from presets import ToFloat
from utils.data.device import OnDevice, one_ahead
from utils.data.loading import Batch


def batches(count: int = 5, size: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        images = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
        made.append(Batch(images, torch.arange(size) + number, [f"{number}.jpg (broken)"] if number % 2 else []))
    made[1:1] = [Batch(torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), ["all (broken)"])]
    return made


def check(found: list[Batch], given: list[Batch], to_float: ToFloat, exactly: bool) -> None:
    assert [batch.corrupt for batch in found] == [batch.corrupt for batch in given]
    for ours, theirs in zip(found, given, strict=True):
        assert torch.equal(ours.targets.cpu(), theirs.targets)
        tolerance = {"rtol": 0, "atol": 0} if exactly else {}
        torch.testing.assert_close(ours.images.cpu(), to_float(theirs.images), **tolerance)


def test_the_loop_sees_every_batch_as_floats_in_order_with_its_corrupt_files():
    to_float = ToFloat(memory_format=torch.channels_last)
    found = list(OnDevice(torch.device("cpu"), to_float)(iter(batches())))
    check(found, batches(), to_float, exactly=True)
    assert found[0].images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_ahead_takes_one_further_item_and_hands_out_all_in_order(count):
    taken = []

    def source():
        for number in range(count):
            taken.append(number)
            yield number

    seen, items = [], one_ahead(source())
    assert taken == []
    for item in items:
        seen.append(item)
        assert taken == list(range(min(item + 2, count)))
    assert seen == list(range(count))


def test_a_loop_that_leaves_ends_the_source():
    ended = []

    def source():
        try:
            yield from range(5)
        finally:
            ended.append(True)

    items = one_ahead(source())
    assert next(items) == 0
    items.close()
    del items
    assert ended == [True]


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.cuda
@cuda
def test_a_gpu_gets_equal_batches_and_the_host_does_not_wait():
    to_float, device = ToFloat(memory_format=torch.channels_last), torch.device("cuda", 0)
    on_device = OnDevice(device, to_float)
    given = batches(20, 64)
    list(on_device(given[:2]))  # memory and kernels are there
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums, found = [], []
        for batch in on_device(given):
            sums.append((batch.images * 2).sum())  # memory of a batch is freed and asked for again
            found.append(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {batch.images.device for batch in found} == {device}
    check(found, given, ToFloat(memory_format=torch.channels_last), exactly=False)


@pytest.mark.cuda
@cuda
def test_a_gpu_copies_on_another_stream_than_it_computes_on():
    device = torch.device("cuda", 0)
    on_device = OnDevice(device, ToFloat())
    list(on_device(batches()))
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for batch in on_device(batches()):
            batch.images.sin()
        torch.cuda.synchronize()
    streams = {"copy": set(), "kernel": set()}
    for event in profile.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            kind = "copy" if "memcpy" in event.name().lower() else "kernel"
            streams[kind].add(event.device_resource_id())
    assert streams["copy"]
    assert streams["kernel"]
    assert not streams["copy"] & streams["kernel"]


@pytest.mark.cuda
@cuda
def test_a_copy_does_not_take_memory_that_is_still_computed_on():
    """The device is kept busy, so that copies run far ahead of what reads their images."""
    device = torch.device("cuda", 0)
    given, found = batches(30, 32), []
    for batch in OnDevice(device, ToFloat())(given):
        torch.cuda._sleep(20_000_000)
        found.append((batch.images.sum((1, 2, 3)), batch.targets.clone()))
    for (sums, targets), theirs in zip(found, given, strict=True):
        torch.testing.assert_close(sums.cpu(), ToFloat()(theirs.images).sum((1, 2, 3)), rtol=1e-3, atol=1e-2)
        assert torch.equal(targets.cpu(), theirs.targets)
