"""Statistics of each sub-network's own: what they are by definition, and that all ways to run a network use them."""

import copy
import io
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import models
from models.skip import prefixes
from tests.tiny import tiny

NORMED = ["resnet18", "resnet20", "mobilenet_v2", "regnet_y_400mf"]
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def batches(count: int = 3, size: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, 3, size, size, generator=generator) * (1 + 0.3 * number) for number in range(count)]


def by_itself(model: models.AdaptiveDepth, skip: tuple, images: list[torch.Tensor]) -> nn.Module:
    """The definition: one sub-network, all its statistics reset, only its batch norms in training mode."""
    network = model.extract(skip).eval()
    for module in network.modules():
        if isinstance(module, BATCH_NORM):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        for x in images:
            network(x)
    return network.eval()


def calibrated(name: str = "resnet20", **kwargs: object) -> models.AdaptiveDepth:
    model = tiny(name)
    models.calibrate(model, batches(), **kwargs)
    return model


def as_read(statistics: dict) -> dict:
    """As a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(statistics, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", NORMED)
@torch.no_grad()
def test_every_subnetwork_has_the_statistics_that_it_would_have_by_itself(name):
    model, images = tiny(name).double(), [x.double() for x in batches()]
    x = torch.randn(2, 3, 32, 32).double()
    raw, state = model.forward_all(x), copy.deepcopy(model.state_dict())
    model.train()
    assert models.calibrate(model, images) == sum(isinstance(module, BATCH_NORM) for module in model.modules())
    assert all(module.training for module in model.modules())
    model.eval()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()
    outputs = model.forward_all(x)
    for skip in [model.super_net, model.base_net, *model.subnets[1:-1:5]]:
        expected = by_itself(tiny(name).double(), skip, images)
        plain = model.extract(skip)
        for (key, ours), theirs in zip(plain.state_dict().items(), expected.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=key)
        torch.testing.assert_close(outputs[skip], expected(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(model(x, skip), outputs[skip])
        assert torch.equal(plain(x), outputs[skip])
        assert not torch.equal(raw[skip], outputs[skip])
    model.forget_statistics()
    assert all(torch.equal(logits, raw[skip]) for skip, logits in model.forward_all(x).items())
    assert model.statistics() == {}


@torch.no_grad()
def test_copies_pickles_and_other_types_keep_them():
    model, x = calibrated(), batches(1)[0]
    outputs = model.forward_all(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(logits, outputs[skip]) for skip, logits in twin.forward_all(x).items())
        models.calibrate(twin, batches(2))
        assert not torch.equal(twin(x), outputs[twin.super_net])  # has its own
    precise = copy.deepcopy(model).double()
    for skip, logits in precise.forward_all(x.double()).items():
        assert logits.dtype is torch.float64
        torch.testing.assert_close(logits.float(), outputs[skip], rtol=1e-3, atol=1e-4)
    assert torch.equal(model(x, model.base_net), outputs[model.base_net])
    logits, features = model(x, model.base_net, return_features=True)
    assert torch.equal(logits, outputs[model.base_net])
    assert len(features) == 3


@torch.no_grad()
def test_a_compiled_network_has_a_graph_for_each_prefix_that_runs():
    torch._dynamo.reset()
    model, x = tiny("resnet20"), batches(1)[0]
    raw = model(x, model.base_net)
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    model.compile(fullgraph=True, backend=counter)
    model(x)
    torch.testing.assert_close(model(x, model.base_net), raw)
    made = counter.frame_count
    models.calibrate(model, batches())
    assert counter.frame_count == made
    expected = copy.deepcopy(model).forward_all(x)
    for _ in range(2):
        for skip in model.subnets:
            torch.testing.assert_close(model(x, skip), expected[skip])
    assert counter.frame_count == made + 1 + 2 + 4 + 8
    model.forget_statistics()
    torch.testing.assert_close(model(x, model.base_net), raw)


def test_training_goes_on_with_the_statistics_that_all_share():
    model, fresh, x = calibrated(), tiny("resnet20"), batches(1)[0]
    kept = copy.deepcopy(model.statistics())
    for network in (model, fresh):
        network.train()(x, network.base_net).sum().backward()
    for (name, ours), theirs in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    for word, tensors in model.statistics().items():
        assert all(torch.equal(tensor, kept[word][name]) for name, tensor in tensors.items())


@torch.no_grad()
def test_several_processes_come_to_what_one_does():
    images, x = batches(5), batches(1)[0]
    expected = tiny("resnet20")
    models.calibrate(expected, images)
    shares = []
    for rank in range(2):  # each alone, to learn what it would hand to the reduction
        models.calibrate(tiny("resnet20"), images[rank::2], reduce=lambda sums: shares.append(sums) or sums)
    assert shares[0].dtype is torch.float64
    for rank in range(3):
        model = tiny("resnet20")
        idle = images[rank::2] if rank < 2 else []  # more processes than batches
        models.calibrate(model, idle, reduce=lambda sums: sum(shares))
        for skip, logits in model.forward_all(x).items():
            torch.testing.assert_close(logits, expected(x, skip), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_few_subnetworks_need_only_their_prefixes():
    model, every, x = calibrated(subnets=[(False, True, False)]), calibrated(), batches(1)[0]
    assert list(model.statistics()) == ["", "F", "FT", "FTF"]
    assert torch.equal(model(x, (False, True, False)), every(x, (False, True, False)))
    assert prefixes((True, False)) == [(), (True,), (True, False), (True, False, False)]
    with pytest.raises(ValueError, match="3 bools"):
        models.calibrate(model, batches(), subnets=[(True,)])


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])  # the second has norms behind the last stage
@torch.no_grad()
def test_a_file_holds_them_beside_the_weights(name):
    model, x = calibrated(name), batches(1)[0]
    saved = as_read({"model": model.state_dict(), "statistics": model.statistics()})
    other = tiny(name)
    models.load_state(other, saved["model"])
    models.load_statistics(other, saved["statistics"])
    assert all(torch.equal(logits, model(x, skip)) for skip, logits in other.forward_all(x).items())
    models.load_state(other, saved["model"])  # weights that may be others, so that these are no longer theirs
    assert other.statistics() == {}
    models.load_statistics(other, {"T": saved["statistics"]["T"]})
    assert list(other.statistics()) == ["T"]


def test_statistics_of_another_network_are_refused_in_one_line():
    model = tiny("resnet20")
    good = as_read(calibrated().statistics())
    name, tensor = next(iter(good["TF"].items()))
    wrong = {
        "not fit AdaptiveSmallResNet: they are no dictionaries of tensors": {"T": torch.zeros(3)},
        "'TFTF' is no prefix of a sub-network's name with norms": {**good, "TFTF": {}},
        f"of 'TF', {name} and 0 more are missing": {"TF": {**good["TF"], name: torch.cat([tensor, tensor])}},
        "of 'TF', fc.weight and 0 more": {"TF": {**good["TF"], "fc.weight": tensor}},
        f"of 'T', {next(iter(good['T']))} and .* more": {"T": {}},
    }
    for message, statistics in wrong.items():
        with pytest.raises(models.WeightsError, match=f"^run.pth: its statistics do .*{message}[^\n]*anew[^\n]*$"):
            models.load_statistics(model, statistics, source="run.pth")
    assert model.statistics() == {}


def test_what_cannot_be_calibrated_is_said():
    transformer = tiny("vit_b_16")
    assert models.calibrate(transformer, iter([])) == 0
    assert transformer.statistics() == {}
    with pytest.raises(ValueError, match=r"bn1 saw no images"):
        models.calibrate(tiny("resnet20"), [])


def test_norms_that_several_processes_share_are_calibrated_each_by_itself():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(tiny("resnet20"))
    models.calibrate(model, batches())
    expected = calibrated().statistics()
    for word, tensors in model.statistics().items():
        assert all(torch.equal(tensor, expected[word][name]) for name, tensor in tensors.items())
    assert type(model.bn1) is nn.SyncBatchNorm
