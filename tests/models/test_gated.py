"""The slimmable MobileNet at a small size: its sub-networks, each one's statistics, and the gate."""

import copy
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from models.gated.routing import DynamicSlimmable
from utils.flags.evaluation import chosen

WIDTHS = ((4, 8), (8, 12), (12, 20), range(16, 41, 4), range(20, 57, 6))
NAMES = ["largest", *(f"uniform_{number}" for number in range(6, 0, -1)), "smallest"]
ROUTES = ["smallest", "uniform_1", "uniform_2", "uniform_3"]


@pytest.fixture(scope="module")
def trained() -> DynamicSlimmable:
    """With statistics of a few batches, and a gate that chooses each of its four for some of 32 images."""
    torch.manual_seed(2)
    settings = {"widths": WIDTHS, "blocks": (1, 2, 2, 1), "stem": "small"}
    model = models.build("slimmable_mbnet_v1_bn_uniform", num_classes=7, **settings)
    for name in model.subnets * 2:
        model(images(), name)
    with torch.no_grad():
        model.blocks[model.gated].first_block.gate.conv_reduce.bias += 1  # the gate sees five values that are not 0
        squeezed = model.eval().view("smallest").trunk(images())[1].flatten(1)
        mean = F.normalize(squeezed.mean(dim=0), dim=0)
        weight = torch.randn(4, len(mean))
        model.gate[0].weight.copy_((weight - weight @ mean[:, None] * mean)[..., None, None])  # none is preferred
    return model


@pytest.fixture
def model(trained) -> DynamicSlimmable:
    return copy.deepcopy(trained)


def images(count: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_a_word_names_one_sub_network_and_all_of_them_go_by_cost(model):
    assert model.subnets == NAMES
    assert model.routes == ROUTES
    assert [model.parse(word) for word in ("uniform_0", "smallest", "gate")] == ["smallest", "smallest", "gate"]
    assert torch.equal(model(images(), "uniform_0"), model(images(), "smallest"))
    with pytest.raises(ValueError, match=r"'uniform_7' is no sub-network: there are largest, uniform_6 … uniform_0"):
        model.parse("uniform_7")
    assert chosen(model, ["all"]) == NAMES
    assert chosen(model, ["all", "gate"]) == [*NAMES, "gate"]
    costs = [model.cost(name, 16) for name in NAMES]
    assert costs == sorted(costs, reverse=True)
    assert model(images(2), "uniform_6").ne(model(images(2))).all(), "before the gate it is narrow"


@pytest.mark.parametrize("name", ["largest", "uniform_6", "uniform_2", "smallest"])
def test_an_extracted_network_gives_the_same_bits_by_ordinary_layers(model, name):
    plain = model.extract(name)
    kinds = {type(module) for module in plain.modules() if not module._modules}
    assert kinds <= {nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Dropout, nn.Sequential}
    assert torch.equal(plain(images()), model(images(), name))
    assert model.cost(name, 16) == (plain.operations(16), sum(p.numel() for p in plain.parameters()))


def test_each_image_runs_in_the_network_that_the_gate_chose_for_it(model):
    with torch.no_grad():
        choices, logits = model.view("gate").choices(images()), model(images(), "gate")
        alone = torch.stack([model(images(), name) for name in ROUTES])
    assert sorted(set(choices.tolist())) == [0, 1, 2, 3]
    torch.testing.assert_close(logits, alone[choices, torch.arange(32)], atol=1e-5, rtol=0)
    assert torch.equal(model(images(), "gate"), logits)
    costs = [model.cost(name, 16).macs + model.gate[0].weight.numel() for name in ROUTES]
    assert model.image_macs(images(), "gate").tolist() == [costs[choice] for choice in choices]
    assert model.image_macs(images(), "uniform_3") is None
    assert model.cost("gate", 16).macs == max(costs)
    single = torch.cat([model(image[None], "gate") for image in images(5)])
    torch.testing.assert_close(single, logits[:5], atol=1e-5, rtol=0)
    taken = model.extract("gate")
    model.gate[0].weight.data.neg_()
    assert torch.equal(taken(images()), logits), "with weights of its own"
    assert sum(p.numel() for p in taken.parameters()) == sum(p.numel() for p in model.view("gate").parameters())


def test_calibrated_each_sub_network_has_statistics_of_its_own(model):
    """The gate's networks have them together: one's trunk runs for all."""
    largest = model(images())
    models.calibrate(model, [images(), images(seed=3)], ["gate"])
    assert list(model.statistics()) == ROUTES
    with torch.no_grad():
        alone = torch.stack([model(images(), name) for name in ROUTES])
        choices = model.view("gate").choices(images())
        torch.testing.assert_close(model(images(), "gate"), alone[choices, torch.arange(32)], atol=1e-5, rtol=0)
    assert torch.equal(model(images()), largest)
    assert model.calibrate([images()]) > 0
    assert list(model.statistics()) == NAMES
    assert not torch.equal(model(images()), largest)
    twin = copy.deepcopy(model)
    model.forget_statistics()
    assert torch.equal(model(images()), largest)
    assert not torch.equal(twin(images()), largest)


def test_in_training_the_gate_draws_and_only_it_can_learn(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluated, choices = model(images(), "gate"), model.view("gate").choices(images())
    model.train().requires_grad_(False)
    model.gate.requires_grad_(True)
    torch.manual_seed(0)
    logits, (decided, drawn, operations, official) = model(images(), "gate", return_features=True)
    torch.manual_seed(0)
    assert torch.equal(model(images(), "gate"), logits)
    assert not torch.equal(model(images(), "gate"), logits)
    same = drawn.argmax(dim=1) == choices
    assert 0 < same.sum() < 32
    torch.testing.assert_close(logits[same], evaluated[same], atol=1e-5, rtol=0)
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(32))
    assert torch.equal(decided.argmax(dim=1), choices)
    assert (official >= operations).all()
    (logits.square().mean() + operations.mean()).backward()
    assert model.gate[0].weight.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["slimmable_mbnet_v1_bn_uniform", "slimmable_mbnet_v1_small"])
def test_small_images_are_shrunk_three_times(name):
    with torch.device("meta"):
        model = models.build(name, num_classes=10, stem="small")
        assert model.view().trunk(torch.empty(2, 3, 32, 32))[0].shape[2:] == (8, 8)
        assert len(model.subnets) == 15


def test_the_released_file_is_read_as_it_was_written(tmp_path):
    """In timm's layout, from several processes, with its own command's arguments, which say nothing here."""
    name = "DS_MBNet-70_1"
    model = models.build("slimmable_mbnet_v1_bn_uniform", weights=None)
    state = {f"module.{key}": torch.randn_like(value) for key, value in model.state_dict().items() if value.ndim}
    state |= {f"module.{key}": value for key, value in model.state_dict().items() if not value.ndim}
    averaged = {key: value + 1 for key, value in state.items()}
    arguments = Namespace(model="slimmable_mbnet_v1_bn_uniform", interpolation="", val_split="validation")
    about = {"epoch": 159, "arch": arguments.model, "version": 2, "metric": 70.1, "optimizer": {}, "args": arguments}
    torch.save({**about, "state_dict": state, "state_dict_ema": averaged}, tmp_path / f"{name}.pth")
    path = models.zoo.weights_file(name, folder=str(tmp_path))
    for ema, expected in ((False, state), (True, averaged)):
        saved = models.read_weights(path, name, "slimmable_mbnet_v1_bn_uniform", ema)
        assert saved.settings == {
            **{"model": arguments.model, "interpolation": "bicubic"},
            **{"val_resize_size": 256, "val_crop_size": 224},
        }
        models.load_state(model, saved.state, str(path))
        assert all(torch.equal(value, expected[f"module.{key}"]) for key, value in model.state_dict().items())
    assert "interpolation" not in models.read_weights(path).settings
    (points,) = models.zoo.published("slimmable_mbnet_v1_bn_uniform").values()
    assert len(points) == 14
    for word, figures in points.items():
        network = model.view(model.parse(word))
        assert figures["gmacs"] == round(network.operations(224, pools=True) / 1e9, 3)
    assert [points[f"uniform_{number}"]["acc@1"] for number in (0, 3, 13)] == [70.1, 71.2, 74.6]
    torch.save({**about, "state_dict": state}, path)
    with pytest.raises(models.WeightsError, match=r"no averaged weights \('state_dict_ema'\); leave out --model-ema"):
        models.read_weights(path, ema=True)
