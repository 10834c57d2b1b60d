"""Mixed batches: what the definition says, repeatable, and without a trace in the generators of others."""

import pytest
import torch

from transforms import BatchMix

CLASSES = 5


def batch(size: int = 6):
    images = torch.arange(1.0, size + 1).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    return images, torch.arange(size) % CLASSES


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_alphas_nothing_happens():
    images, targets = batch()
    same = BatchMix(CLASSES)(images, targets, generator())
    assert same[0] is images
    assert same[1] is targets


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_targets_say_what_share_of_which_image_is_in_the_pixels(alphas):
    images, targets = batch()
    mix, draws = BatchMix(CLASSES, *alphas), generator()
    one_hot = torch.nn.functional.one_hot(targets, CLASSES).float()
    for _ in range(20):
        mixed, soft = mix(images, targets, draws)
        # constant images: the mean of the pixels tells the share of the neighbour
        neighbour = images.roll(1, 0)
        share = ((mixed - images).mean(dim=(1, 2, 3)) / (neighbour - images)[:, 0, 0, 0])[:, None]
        torch.testing.assert_close(soft, (1 - share) * one_hot + share * one_hot.roll(1, 0))
        assert torch.allclose(soft.sum(dim=1), torch.ones(len(targets)))
        assert share.min() >= 0
        assert share.max() <= 1


def test_with_both_alphas_either_is_chosen_about_equally_often():
    images, targets = batch()
    mix, draws = BatchMix(CLASSES, 1.0, 1.0), generator()
    cut = 0
    for _ in range(200):
        mixed, _ = mix(images, targets, draws)
        cut += bool((torch.isclose(mixed, images) | torch.isclose(mixed, images.roll(1, 0))).all())
    assert 60 < cut < 140


def test_the_generator_decides_and_no_other_notices():
    images, targets = batch()
    mix = BatchMix(CLASSES, 0.8, 1.0)
    state = torch.get_rng_state()
    first = mix(images, targets, generator(7))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = mix(images, targets, generator(7)), mix(images, targets, generator(8))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_and_the_input_survive(layout):
    images, targets = batch()
    images = images.contiguous(memory_format=layout)
    before = images.clone()
    mixed, _ = BatchMix(CLASSES, 0.8, 1.0)(images, targets, generator())
    assert mixed.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0)])
def test_the_host_does_not_wait_for_the_device(alphas):
    images, targets = batch()
    images = images.cuda().contiguous(memory_format=torch.channels_last)
    targets, mix = targets.cuda(), BatchMix(CLASSES, *alphas)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed, soft = mix(images, targets, generator())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = mix(images.cpu(), targets.cpu(), generator())
    torch.testing.assert_close((mixed.cpu(), soft.cpu()), on_cpu)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
