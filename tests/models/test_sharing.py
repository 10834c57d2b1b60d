"""What several sub-networks have in common runs once, and one after the other they leave nothing behind."""

import gc

import pytest
import torch

import models
from tests.tiny import batch, tiny


def test_a_walk_over_all_subnetworks_runs_a_shared_prefix_once():
    model, calls = tiny("resnet50"), []
    for stage in (model.layer1, model.layer4):
        stage[0].conv1.register_forward_hook(lambda part, *_: calls.append(part))
    with torch.no_grad():
        model.forward_all(batch())
    assert [calls.count(stage[0].conv1) for stage in (model.layer1, model.layer4)] == [2, 16]
    calls.clear()
    models.calibrate(model, [batch()])
    assert [calls.count(stage[0].conv1) for stage in (model.layer1, model.layer4)] == [2, 16]


@torch.no_grad()
def test_switching_leaves_nothing_behind():
    model, x = tiny("resnet18"), batch()

    def alive() -> tuple[int, int]:
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]  # no compiler's
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
