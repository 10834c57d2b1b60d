"""The slimmable MobileNet against values of the official DS-Net, with weights filled by the rule of `tests/filled.py`.

Plain fill hardly depends on the image: what does, is recorded with "calibrated" weights, whose running statistics are
those of one batch.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from methods.dsnet import GateLoss
from models.gated.routing import DynamicSlimmable
from tests.filled import OF_GRADIENTS, filled, golden_values, images
from utils.train.losses import Outputs
from utils.train.optim import MovingAverage
from utils.train.passes import LABELS, Pass
from utils.train.step import TrainingStep

GOLDEN = golden_values("dsnet.json.gz")
NAME = "slimmable_mbnet_v1_bn_uniform"
FOURTEEN = [f"uniform_{number}" for number in range(14)]


def full(gain: float = 1.0) -> DynamicSlimmable:
    model = models.build(NAME, dropout=0.0)
    state = filled(model.state_dict())
    model.load_state_dict({name: value * gain if value.ndim > 1 else value for name, value in state.items()})
    return model.eval()


@pytest.fixture(scope="module")
def calibrated() -> dict[str, Tensor]:
    model = full()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        for name in ("largest", "smallest", *FOURTEEN):
            model.train()(images(4, 224, seed=11), model.parse(name))
    return model.state_dict()


def with_weights(state: dict[str, Tensor]) -> DynamicSlimmable:
    model = models.build(NAME, dropout=0.0)
    model.load_state_dict(state)
    return model


def test_names_and_shapes_are_the_official_ones():
    model = models.build(NAME)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == GOLDEN["manifest"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_676_204


def test_operations_are_the_official_ones_in_both_conventions():
    model = models.build(NAME)
    for name, macs in GOLDEN["macs_conv_and_linear"].items():
        network = model.view(model.parse(name))
        assert network.operations(224) == macs, name
        assert network.operations(224, pools=True) == GOLDEN["madds_as_clone_counts_them"][name]
    for name in ("largest", "uniform_7", "smallest"):
        assert model.cost(name).macs == GOLDEN["macs_conv_and_linear"][name]


@pytest.mark.parametrize(
    ("record", "gain", "tolerance", "kind", "names"),
    [
        ("fill", 1.0, 1e-4, torch.float32, ("largest", "smallest", *FOURTEEN)),
        ("fill_x2", 2.0, 1e-3, torch.float64, ("largest", "uniform_5")),
    ],
)
def test_logits_are_the_official_ones(record, gain, tolerance, kind, names):
    """The weights times 2 magnify rounding: of `largest` even float64 is 5e-4 of the spread from the record."""
    model, batch = full(gain).to(kind), images(2, 224).to(kind)
    with torch.no_grad():
        for name in names:
            expected = GOLDEN[record][name]
            logits = model(batch, model.parse(name))
            found = (logits[:, :8] - torch.tensor(expected["head"])).abs().max() / expected["std"]
            assert found < tolerance, name
            assert logits.argmax(dim=1).tolist() == expected["argmax"]
            assert logits.std().item() == pytest.approx(expected["std"], rel=tolerance)


def test_the_gate_decides_as_the_official_one(calibrated):
    model, batch, expected = with_weights(calibrated).eval(), images(4, 224), GOLDEN["dynamic"]
    with torch.no_grad():
        logits, gate = model(batch, "gate"), model.view("gate")
        assert gate.choices(batch).tolist() == expected["choice"]
        decided = gate._decide(batch)[1]
    torch.testing.assert_close(decided, torch.tensor(expected["gate_logits"]), atol=2e-6, rtol=0)
    assert ((logits[:, :8] - torch.tensor(expected["head"])).abs().max() / expected["std"]) < 1e-4
    count = gate.operations(224, pools=True, groups_of=gate.routes[0])
    assert [count[choice] for choice in expected["choice"]] == expected["running_flops_per_sample_as_clone"]
    assert round(count[3] / 1e6, 1) == 200.9, "the depthwise convolutions' error"


def test_a_step_of_the_first_stage_equals_the_official_one(calibrated):
    """On the labels alone, with the two networks that were drawn there."""
    model, expected = with_weights(calibrated).train(), GOLDEN["stage1"]
    average = MovingAverage(model, decay=0.997, every=1)
    average.n_averaged.fill_(1)
    names = [f"{kind}_{number}" if kind == "uniform" else kind for _, kind, number in expected["draws"]]
    assert names == ["largest", "uniform_1", "uniform_4", "smallest"]
    step = TrainingStep(model, nn.CrossEntropyLoss(label_smoothing=0.1), None, torch.enable_grad)
    passes = [Pass(name, model.parse(name), ((LABELS, 1.0),)) for name in names]
    results = step(passes, images(4, 64), torch.arange(4) * 7, lambda loss: loss.backward())
    average.update(model, 1, warming_up=False)
    assert [result.loss.item() for result in results] == pytest.approx(
        [loss for _, loss in expected["losses_in_order"]], abs=5e-5
    )
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert norms == pytest.approx({name: norm for name, norm in expected["grads"].items() if norm}, rel=OF_GRADIENTS)
    assert [name for name, p in model.named_parameters() if p.grad is None] == expected["none_grads"]
    for key, network in (("running_mean_norm", model), ("ema_running_mean_norm", average.module)):
        means = {name: b.norm().item() for name, b in network.named_buffers() if name.endswith("running_mean")}
        assert means == pytest.approx(expected[key], rel=1e-4, abs=2e-6), key


def test_a_step_of_the_gate_equals_the_official_one(calibrated, monkeypatch):
    """Without noise, as there; the official code's gradients of what it does not train are not asked for."""
    monkeypatch.setattr(Tensor, "exponential_", lambda self: self.fill_(1.0))
    model, expected = with_weights(calibrated).train(), GOLDEN["gate"]
    model.requires_grad_(False)
    model.gate.requires_grad_(True)
    logits, features = model(images(4, 64), "gate", return_features=True)
    (_, targets, gate_loss), (_, labels, label_loss) = expected["losses_in_order"]
    distance = GateLoss(official=True, cost=0.5, smoothing=0.1)
    right = Outputs(torch.tensor(targets) == 0)
    loss = F.cross_entropy(logits, torch.tensor(labels), label_smoothing=0.1)
    assert loss.item() == pytest.approx(label_loss, abs=5e-5)
    assert GateLoss(True, 0.0, 0.1)(Outputs(logits, features), right).item() == pytest.approx(gate_loss, abs=5e-5)
    assert (features[3] * 1e9).tolist() == expected["flops_per_sample_seen_by_loss"]
    total = loss + distance(Outputs(logits, features), right)
    total.backward()
    assert total.item() == pytest.approx(expected["total"], abs=5e-5)
    grad = model.gate[0].weight.grad.flatten(1)
    assert grad.norm().item() == pytest.approx(expected["gate_grad_norm"], rel=1e-4)
    torch.testing.assert_close(grad[:, :8], torch.tensor(expected["gate_grad"]), atol=2e-6, rtol=1e-3)
