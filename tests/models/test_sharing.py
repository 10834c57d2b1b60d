"""What several sub-networks have in common runs once, and one after the other they leave nothing behind."""

import gc

import pytest
import torch

from tests.tiny import batch, tiny


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "mobilenet_v2", "swin_t"])
def test_embedding_for_several_networks_leaves_the_statistics_of_several_runs(name):
    together, apart = tiny(name).train(), tiny(name).train()
    shared = together.embed(batch(), networks=3)
    for _ in range(3):
        alone = apart.embed(batch())
    assert len(shared) == (1 if name == "swin_t" else 2)  # x, and the part of the first block that knows no skip
    assert all(map(torch.equal, shared, alone))
    for mine, theirs in zip(together.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    skip = together.eval().base_net
    assert torch.equal(together(batch(), skip), together(together.embed(batch(), networks=2), skip, embedded=True))


def test_a_walk_over_all_subnetworks_runs_alike_parts_once():
    model, calls = tiny("resnet50"), []
    for stage in (model.layer1, model.layer4):
        for part in (stage[0].conv1, stage[0].downsample[0], stage[0].conv2):
            part.register_forward_hook(lambda part, *_: calls.append(part))
    with torch.no_grad():
        model.forward_all(batch())
    first, last = model.layer1[0], model.layer4[0]
    assert [calls.count(part) for part in (first.conv1, first.downsample[0], first.conv2)] == [1, 1, 2]
    assert [calls.count(part) for part in (last.conv1, last.downsample[0], last.conv2)] == [8, 8, 16]


@torch.no_grad()
def test_switching_leaves_nothing_behind():
    model, x = tiny("resnet18"), batch()

    def alive() -> tuple[int, int]:
        gc.collect()
        tensors = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
        return len(tensors), sum(tensor.nbytes for tensor in tensors)

    model.forward_all(x)
    before = alive()
    for skip in 3 * model.subnets:
        model(x, skip)
    model.forward_all(x)
    assert alive() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.no_grad()
def test_switching_allocates_nothing_new_on_a_gpu():
    model, x = tiny("resnet18").cuda(), batch().cuda()
    for skip in model.subnets:
        model(x, skip)
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for skip in 3 * model.subnets:
        model(x, skip)
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before
