"""Networks of several resolutions: words, plain networks out of them, and kernels that are made once."""

import copy
import pickle
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torchvision.models import MobileNetV2, ResNet
from torchvision.models.resnet import BasicBlock

import models
from models.resolution.layers import GeneratedConv2d
from models.resolution.scales import Scale, ScaleAdaptive

SMALL = {"num_classes": 7, "sizes": [32, 24, 16], "width": 4}


def small(**settings: object) -> ScaleAdaptive:
    """In evaluation, every tensor mattering."""
    torch.manual_seed(0)
    model = models.build("meta_resnet20", **{**SMALL, **settings})
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.normal_(module.bias)
            module.running_var.uniform_(20, 40)
    return model.eval()


def images(size: int = 24) -> Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(size))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many kernels were made."""
    count, make = [], GeneratedConv2d._made
    monkeypatch.setattr(GeneratedConv2d, "_made", lambda *given: count.append(1) or make(*given))
    return count


def test_words_and_sub_networks_are_each_other_s_inverse() -> None:
    model = models.build("meta_resnet20")
    assert [model.name(subnet) for subnet in model.subnets] == ["224", "192", "160", "128", "96"]
    assert [subnet.encoding for subnet in model.subnets] == [0.7, 0.6, 0.5, 0.4, 0.3]
    words = {
        "160": Scale(160, (2,), 0.5),
        "176@160": Scale(176, (2,), 0.5),
        "176@160:0.55": Scale(176, (2,), 0.55),
        "160:0.45": Scale(160, (2,), 0.45),
        "176@192+160": Scale(176, (1, 2), 0.55),
        "176@192+160:0.5": Scale(176, (1, 2), 0.5),
    }
    for word, subnet in words.items():
        assert model.parse(word) == subnet
        assert model.name(subnet) == word
        assert model.size(subnet) == subnet.size
    for same in ("160@160", "160@160+160:0.5"):
        assert model.parse(same) == words["160"]
    for wrong in ("", "176", "160@", "160@150", "0@160", "160:", "160:x", "160@160:1:2", "-160"):
        with pytest.raises(ValueError, match="is no sub-network: it is one of 224 192 160 128 96; or"):
            model.parse(wrong)
    for wrong in ("160", 160, Scale(160, (5,), 0.5), Scale(160, (), 0.5)):
        with pytest.raises(ValueError, match="is no sub-network of this network"):
            model(images(), wrong)
    for sizes in ([], [24, 32], [32, 32]):
        with pytest.raises(ValueError, match="from the largest to the smallest"):
            small(sizes=sizes)


@pytest.mark.parametrize("word", ["24", "20@24", "28@32+24", "24:0.1"])
def test_an_extracted_network_is_a_plain_one_to_the_bit(word: str) -> None:
    model = small()
    model.calibrate([images(20), images(20) * 2], [model.parse("20@24")])
    subnet = model.parse(word)
    plain = model.extract(subnet)
    kinds = {type(module) for module in plain.modules() if next(module.parameters(recurse=False), None) is not None}
    assert kinds == {torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear}
    with torch.no_grad():
        assert torch.equal(plain(images()), model(images(), subnet))
        assert torch.equal(plain(images()), model.view(subnet)(images()))
    assert not any(module.training for module in (*plain.modules(), *model.view(subnet).modules()))
    assert model.cost(subnet) == model.cost(subnet, subnet.size)


def test_torchvision_takes_the_extracted_weights() -> None:
    for name, kind in (("meta_resnet18", ResNet(BasicBlock, [2, 2, 2, 2])), ("meta_mobilenetv2", MobileNetV2())):
        plain = models.build(name).extract()
        assert type(plain) is type(kind)
        kind.load_state_dict(plain.state_dict())
    for name in ("meta_resnext50_32x4d", "meta_resnext101_32x8d", "meta_resnet152"):
        with torch.device("meta"):
            assert models.build(name).subnets


def test_kernels_are_made_once_for_each_encoding(made: list[int]) -> None:
    model, layers = small(), 19
    model.layer1.requires_grad_(False)
    with torch.no_grad():
        for _ in range(3):
            model(images(), model.parse("24")), model(images(20), model.parse("20@24"))
        assert len(made) == layers - 1, "the stem's convolution is an ordinary one"
        model(images(), model.parse("24:0.1"))
    assert len(made) == 2 * (layers - 1)


CHANGES = {
    "load": lambda model, other: model.load_state_dict(other.state_dict()),
    "assign": lambda model, other: model.load_state_dict(other.state_dict(), assign=True),
    "data": lambda model, other: vector_to_parameters(parameters_to_vector(other.parameters()), model.parameters()),
    "half and back": lambda model, other: model.half().float(),
    "double": lambda model, other: model.double(),
    "average": lambda model, other: torch._foreach_lerp_(list(model.parameters()), list(other.parameters()), 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_kernels_follow_the_weights(change: str) -> None:
    model, other = small(), small()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    subnet = model.parse("24")
    with torch.no_grad():
        before = model(images(), subnet)
        CHANGES[change](model, other)
        x = images().double() if change == "double" else images()
        after = model(x, subnet)
        fresh = small().to(x.dtype)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(after, fresh(x, subnet))
        assert not torch.equal(after, before)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_kernels_follow_an_optimizer(fused: bool, training: bool) -> None:
    """Fused ones write to the weights without being counted."""
    model = small()
    subnet, sgd = model.parse("24"), torch.optim.SGD(model.parameters(), 1.0, fused=fused)
    with torch.no_grad():
        before = model(images(), subnet)
    model.train(training)(images(), subnet).square().sum().backward()
    sgd.step()
    with torch.no_grad():
        after = model.eval()(images(), subnet)
    fresh = small()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(after, fresh(images(), subnet))
    assert not torch.equal(after, before)


def test_copies_and_threads_have_kernels_of_their_own() -> None:
    model = small()
    subnets = [model.parse(word) for word in ("32", "24", "16", *(f"24:0.{number}" for number in range(1, 9)))]
    with torch.no_grad():
        expected = [model(images(), subnet) for subnet in subnets]
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model.view(subnets[1]))):
            run = twin if isinstance(twin, ScaleAdaptive) else lambda x, _, twin=twin: twin(x)
            assert torch.equal(run(images(), subnets[1]), expected[1])
            for parameter in twin.parameters():
                parameter.zero_()
            assert not torch.equal(run(images(), subnets[1]), expected[1])
        assert torch.equal(model(images(), subnets[1]), expected[1])
    wrong = []

    def work(start: int) -> None:
        for number in range(start, start + 60):
            place = number % len(subnets)
            with torch.inference_mode():
                if not torch.equal(model(images(), subnets[place]), expected[place]):
                    wrong.append(place)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_precision_and_compilation_change_nothing_of_what_runs() -> None:
    model = small()
    subnet = model.parse("24")
    with torch.no_grad():
        expected = model(images(), subnet)
        plain = model.extract(subnet)
        classify, plain.fc = plain.fc, nn.Identity()
        with torch.autocast("cpu", torch.bfloat16):
            logits, features = model(images(), subnet), plain(images())
        assert features.dtype == torch.bfloat16
        assert torch.equal(logits, classify(features.float()))
        model.compile(backend="eager")
        torch.testing.assert_close(model(images(), subnet), expected)


def test_a_frozen_batch_norm_stays_frozen() -> None:
    model = small().train()
    model.bn1.bn_1.eval()
    before = model.bn1.bn_1.running_mean.clone()
    model(images(), model.parse("24"))
    assert torch.equal(model.bn1.bn_1.running_mean, before)
    assert not model.bn1.bn_1.training


def test_statistics_of_spelled_sub_networks_are_kept_and_read() -> None:
    model, views = small(), [images(size) for size in (28, 24, 20)]
    subnets = [model.parse(word) for word in ("24", "20@24", "28@32+24", "20@24:0.1")]
    with torch.no_grad():
        before = model.forward_all(views, subnets)
        assert model.calibrate([views], subnets) == 19
        after = model.forward_all(views, subnets)
        other = small()
        other.load_statistics(model.statistics())
        for subnet in subnets:
            assert not torch.allclose(after[subnet], before[subnet])
            assert torch.equal(other(model.images_for(views, subnet), subnet), after[subnet])
            assert torch.equal(other.extract(subnet)(model.images_for(views, subnet)), after[subnet])
    with pytest.raises(ValueError, match=r"32 takes images of 32; there are views of 28, 24, 20"):
        model.forward_all(views, [model.parse("32")])
    with pytest.raises(models.WeightsError, match="'21' is no prefix"):
        other.load_statistics({"21": model.statistics()["24"]})


def test_a_file_of_the_official_code_loads(tmp_path) -> None:
    model = small()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1).state_dict()
    content = {"epoch": 120, "arch": "meta_resnet20", "best_prec1": torch.tensor(70.0), "optimizer": optimizer}
    torch.save(content | {"state_dict": state}, tmp_path / "model_best.pth.tar")
    other = models.build("meta_resnet20", **SMALL).eval()
    saved = models.read_weights(tmp_path / "model_best.pth.tar")
    models.load_state(other, saved.state, saved.source)
    with torch.no_grad():
        assert torch.equal(other(images()), model(images()))
    assert saved.about == "epoch 120"
    assert models.num_classes(saved.state) == 7
