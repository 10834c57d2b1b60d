"""All sub-networks in a step, or the sandwich: against the official code's values, and what is drawn."""

import contextlib

import pytest
import torch
from torch import nn

import methods
import models
from methods.slimmable import Sandwich, Slimmable
from tests.filled import OF_GRADIENTS, filled, golden_values, images
from tests.methods.test_adn import settings
from utils.flags.arguments import parser
from utils.train.optim import build_optimizer
from utils.train.passes import LABELS
from utils.train.step import TrainingStep

GOLDEN = golden_values("slimmable.json.gz")
FLAGS = "--norm-weight-decay 0 --bias-weight-decay 0 --depthwise-weight-decay 0"


@pytest.mark.parametrize("name", list(GOLDEN["train_step"])[1:])  # s_resnet50 on labels alone has the same passes
def test_a_step_equals_the_official_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = GOLDEN["train_step"][name]
    about = golden["args"]
    model = models.build(about["model"], widths=about["bn_widths"]).train()
    model.load_state_dict(filled(model.state_dict()))
    args = settings(in_place_distillation=about["inplace_distill"])
    if about["model"].startswith("us_"):
        drawn = iter([0.5, 0.715])
        monkeypatch.setattr(model, "draw", lambda place: next(drawn))
        method = Sandwich(args, model)
    else:
        method = Slimmable(args, model)
    passes = method.passes(0, 0)
    assert [this.subnet for this in passes] == [width for width, _ in golden["losses_in_order"]]
    step = TrainingStep(model, nn.CrossEntropyLoss(), method.distance, contextlib.nullcontext)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # train mode magnifies rounding; one thread sums in another order than two
    try:
        results = step(passes, images(4, about["size"]), torch.arange(4) * 7, lambda loss: loss.backward())
    finally:
        torch.set_num_threads(before)
    assert [result.loss.item() for result in results] == pytest.approx(
        [x for _, x in golden["losses_in_order"]], abs=5e-5
    )
    norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
    assert norms == pytest.approx(golden["grads"], rel=OF_GRADIENTS)
    means = {key: value.norm().item() for key, value in model.named_buffers() if key.endswith("running_mean")}
    assert means == pytest.approx(golden["running_mean_norm"], rel=1e-4)
    optimizer = build_optimizer(model, parser(methods).parse_args(["--data-path", ".", *FLAGS.split()]))
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {key: decay_of[id(p)] for key, p in model.named_parameters()} == golden["weight_decay"]


def test_the_sandwich_is_the_largest_the_smallest_and_drawn_ones() -> None:
    model = models.build("us_mobilenet_v1", num_classes=3, widths=(0.25, 1.0))
    method = Sandwich(settings("--sandwich 5", seed=1), model)
    steps = [method.passes(epoch, step) for epoch in range(3) for step in range(100)]
    assert {tuple(this.role for this in passes) for passes in steps} == {method.roles}
    assert method.roles == ("largest", "smallest", "drawn1", "drawn2", "drawn3")
    assert method.tested == {"largest": 1.0, "smallest": 0.25}
    assert {tuple(this.subnet for this in passes[:2]) for passes in steps} == {(1.0, 0.25)}
    assert [this.targets for this in steps[0]] == [((LABELS, 1.0),)] + 4 * [((0, 1.0),)]
    drawn = sorted(this.subnet for passes in steps for this in passes[2:])
    assert len(set(drawn)) == 900
    quarters = torch.histc(torch.tensor(drawn), 4, 0.25, 1.0)
    assert quarters.tolist() == pytest.approx([225] * 4, rel=0.15)
    assert method.passes(1, 7) == Sandwich(settings("--sandwich 5", seed=1), model).passes(1, 7) == steps[107]
    assert method.passes(1, 7) != Sandwich(settings("--sandwich 5", seed=2), model).passes(1, 7)
    labels = Sandwich(settings("--no-in-place-distillation"), model).passes(0, 0)
    assert [this.targets for this in labels] == 4 * [((LABELS, 1.0),)]


def test_all_sub_networks_learn_from_labels_or_from_the_largest() -> None:
    model = models.build("s_resnet18", num_classes=3)
    method = Slimmable(settings(), model)
    assert [(this.role, this.subnet) for this in method.passes(0, 0)] == [
        (str(width), width) for width in model.subnets
    ]
    assert list(method.tested) == ["1.0", "0.75", "0.5", "0.25"]
    assert {this.targets for this in method.passes(0, 0)} == {((LABELS, 1.0),)}
    distilled = Slimmable(settings("--in-place-distillation"), model).passes(0, 0)
    assert [this.targets for this in distilled] == [((LABELS, 1.0),)] + 3 * [((0, 1.0),)]
