"""Networks whose sub-networks are views, by a small one of two widths that is made here."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from models.leading import LeadingBatchNorm2d, LeadingConv2d, LeadingLinear
from models.views import Views

WIDTHS = {"wide": 8, "narrow": 4}


class Conv(LeadingConv2d):
    def at(self, subnet: str) -> nn.Module:
        return self.leading(WIDTHS[subnet], 3)


class Norm(nn.Module):
    """Weight and bias are shared, statistics are private to a width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))
        self.bn = nn.ModuleDict({name: nn.BatchNorm2d(width, affine=False) for name, width in WIDTHS.items()})

    def at(self, subnet: str) -> nn.Module:
        return LeadingBatchNorm2d(WIDTHS[subnet], self.weight, self.bias, self.bn[subnet]._buffers)


class Classifier(LeadingLinear):
    def at(self, subnet: str) -> nn.Module:
        return self.leading(WIDTHS[subnet])


class Plain(nn.Module):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv(3, 8, 3), Norm(8), nn.ReLU(), nn.Dropout(0.5))
        self.classifier = Classifier(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x).mean(dim=(2, 3)))


class TwoWidths(Views, Plain):
    subnets = tuple(WIDTHS)

    def name(self, subnet: str) -> str:
        return subnet


@pytest.fixture
def model() -> TwoWidths:
    torch.manual_seed(0)
    return TwoWidths()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_sub_network_is_an_ordinary_network(model: TwoWidths) -> None:
    for _ in range(2):
        model(images(), "narrow"), model(images() * 2)
    model.eval()
    for name, width in WIDTHS.items():
        logits, plain = model(images(), name), model.extract(name)
        assert type(plain) is Plain
        assert [type(module) for module in plain.body] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout]
        assert plain.body[0].weight.shape == (width, 3, 3, 3)
        assert torch.equal(plain(images()), logits)
        assert torch.equal(model.view(name)(images()), logits)
        assert model.cost(name, 8) == (6 * 6 * 27 * width + 5 * width, 27 * width + width + 2 * width + 5 * width + 5)
    assert not torch.equal(model(images(), "narrow"), model(images()))
    plain.body[0].weight.data.zero_()
    assert torch.equal(model(images(), name), logits), "an extracted network has weights of its own"


def test_a_width_leaves_another_one_s_statistics_and_weights_alone(model: TwoWidths) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(images(), "narrow").sum().backward()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"body.1.bn.narrow.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert model.body[0].weight.grad[:4].any()
    assert not model.body[0].weight.grad[4:].any()


def test_copies_follow_the_network(model: TwoWidths) -> None:
    """Its mode, modules replaced later, and its weights."""
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model(images(), "narrow"), model.eval()
    assert torch.equal(model(images(), "narrow"), model(images(), "narrow")), "no dropout in evaluation"
    model.train()
    assert not torch.equal(model(images(), "narrow"), model(images(), "narrow"))
    model.body[2] = nn.Tanh()
    assert isinstance(model.view("narrow").body[2], nn.Tanh)
    expected = model.eval()(images(), "narrow")
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    assert model._view("narrow").network.body[1].weight is model.body[1].weight
    for twin in twins:
        twin.body[2] = nn.Tanh()
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin.eval()(images(), "narrow"), expected)
        twin.body[0].weight.data.zero_()
    assert torch.equal(model(images(), "narrow"), expected)


def test_calibrated_a_sub_network_has_statistics_of_its_own(model: TwoWidths) -> None:
    batches, before = [images(), images() * 3], model.eval()(images(), "narrow")
    assert model.calibrate(batches, ["narrow"]) == 1
    weight, bias = model.body[0].weight[:4], model.body[0].bias[:4]
    means = [nn.functional.conv2d(batch, weight, bias).mean(dim=(0, 2, 3)) for batch in batches]
    saved = model.statistics()
    assert list(saved) == ["narrow"]
    torch.testing.assert_close(saved["narrow"]["body.1.running_mean"], torch.stack(means).mean(0))
    assert model.body[1].bn["narrow"].num_batches_tracked == 0, "the statistics of training stay"
    calibrated = model(images(), "narrow")
    assert not torch.allclose(calibrated, before)
    assert torch.equal(model.extract("narrow")(images()), calibrated)
    other = TwoWidths()
    other.load_state_dict(model.state_dict())
    other.load_statistics(saved)
    assert torch.equal(other.eval()(images(), "narrow"), calibrated)
    other.train()(images(), "narrow")
    assert other.body[1].bn["narrow"].num_batches_tracked == 1, "training uses those of training"
    model.forget_statistics()
    assert torch.equal(model(images(), "narrow"), before)


def test_without_running_statistics_a_width_trains_and_cannot_evaluate() -> None:
    norm = LeadingBatchNorm2d(4, nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8)), None)
    assert norm(images()[:, :1].expand(-1, 4, -1, -1)).mean().abs() < 1e-5
    with pytest.raises(ValueError, match="calibrate it first"):
        norm.eval()(images()[:, :1].expand(-1, 4, -1, -1))


def test_compiled_it_gives_the_same(model: TwoWidths) -> None:
    model.eval()
    expected = [model(images(), name) for name in WIDTHS]
    model.compile()
    torch.testing.assert_close([model(images(), name) for name in WIDTHS], expected)
