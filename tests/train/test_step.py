"""The step's losses and gradients: against the official code's, and against their own definitions."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

import models
from tests.deploy.shallow import shallow
from tests.filled import OF_GRADIENTS, filled, golden_values, images
from tests.tiny import batch, tiny
from utils.train.losses import Distillation, Outputs, mean_over_space
from utils.train.passes import LABELS, Pass
from utils.train.step import TrainingStep

SHALLOW = ("convnext", "regnet")  # the usual ones are wide
GOLDEN = golden_values("train_step.json")


def adn_passes(model: models.AdaptiveDepth, alpha: float = 0.5) -> list[Pass]:
    return [Pass("super", model.super_net, ((LABELS, alpha),)), Pass("base", model.base_net, ((0, 1 - alpha),))]


def step_of(model: nn.Module, distance: Distillation, smoothing: float = 0.0) -> TrainingStep:
    return TrainingStep(model, nn.CrossEntropyLoss(label_smoothing=smoothing), distance, contextlib.nullcontext)


def backward(loss: torch.Tensor) -> None:
    loss.backward()


@pytest.fixture
def two_threads():
    """Train mode magnifies rounding; one thread sums in another order than two."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.usefixtures("two_threads")
def test_a_step_equals_the_official_one(name):
    golden = GOLDEN[name]
    settings = golden["args"]
    model = models.build(settings["model"], num_classes=1000)
    model.load_state_dict(filled(model.state_dict()))
    step = step_of(
        model.train(),
        Distillation(settings["temp"], topk=500, features=mean_over_space if settings["fpn"] else None),
        smoothing=0.1,
    )
    passes = adn_passes(model, settings["alpha"])
    results = step(passes, images(4, settings["size"]), torch.arange(4) * 7, backward)
    assert [round(result.loss.item(), 4) for result in results] == [golden["loss_super"], golden["loss_base"]]
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    assert norms.keys() == golden["grads"].keys()
    assert norms == pytest.approx(golden["grads"], rel=OF_GRADIENTS)
    means = {name: value.norm().item() for name, value in model.named_buffers() if name in golden["running_mean_norm"]}
    assert means == pytest.approx(golden["running_mean_norm"], rel=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "mobilenet_v2", "vit_b_16", "swin_t", "swin_v2_t", *SHALLOW])
def test_passes_in_turn_give_the_gradients_of_the_summed_loss(name):
    model = (shallow if name in SHALLOW else tiny)(name).double().train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, StochasticDepth)):
            module.p = 0.0
    x, labels = batch(8).double(), torch.arange(8) % 7
    step_of(model, Distillation(2.0, topk=3, features=mean_over_space))(adn_passes(model, 0.3), x, labels, backward)
    in_turn = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    y_super, h_super = model(x, model.super_net, return_features=True)
    y_base, h_base = model(x, model.base_net, return_features=True)
    classes = y_super.topk(3).indices
    total = 0.3 * F.cross_entropy(y_super, labels)
    total = total + 0.7 * divergence(y_base.gather(1, classes), y_super.gather(1, classes), 2.0)
    for s, t in zip(h_base[1:], h_super[1:], strict=True):
        total = total + 0.7 * divergence(s.mean((2, 3)), t.mean((2, 3)), 2.0)
    total.backward()
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(in_turn[parameter_name], parameter.grad, rtol=1e-9, atol=1e-12, msg=parameter_name)


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL by its definition."""
    p = (teacher.detach() / temperature).softmax(1)
    q = (student / temperature).softmax(1)
    return (p * (p / q).log()).sum() / len(p) * temperature**2


def test_topk_is_capped_by_the_number_of_classes_and_0_means_all():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 10, generator=generator) for _ in range(2))
    by_all = divergence(student, teacher, 1.0)
    for topk in (0, 10, 500):
        torch.testing.assert_close(Distillation(1.0, topk)(Outputs(student), Outputs(teacher)), by_all)
    few = Distillation(1.0, topk=4)(Outputs(student), Outputs(teacher))
    classes = teacher.topk(4).indices
    torch.testing.assert_close(few, divergence(student.gather(1, classes), teacher.gather(1, classes), 1.0))


def test_a_teacher_learns_nothing_from_its_student():
    teacher = torch.randn(3, 4, requires_grad=True)
    student = torch.randn(3, 4, requires_grad=True)
    losses = Distillation(features=mean_over_space)
    outputs = [Outputs(t, [t[:, :2], t[:, 2:], t]) for t in (student, teacher.detach())]
    losses(*outputs).backward()
    assert student.grad.any()
    assert teacher.grad is None


def test_a_pass_has_a_view_and_several_targets():
    """As in scale-adaptive networks: each resolution on the labels, and on all larger ones; and a frozen teacher."""
    model = tiny("resnet18").train()
    frozen = tiny("resnet18")
    calls = []

    def teacher(images: torch.Tensor, labels: torch.Tensor) -> Outputs:
        calls.append(images.shape[-1])
        return Outputs(frozen(images, frozen.base_net))

    views, labels = [batch(4), batch(4)[..., ::2, ::2]], torch.arange(4)
    passes = [
        Pass("32", model.super_net, ((LABELS, 1.0), (teacher, 0.5)), view=0),
        Pass("16", model.super_net, ((LABELS, 1.0), (0, 0.25), (teacher, 0.5)), view=1),
        Pass("again", model.base_net, ((teacher, 2.0),), view=1),
    ]
    distance = Distillation(topk=0)
    results = step_of(model, distance)(passes, views, labels, backward)
    assert calls == [32, 16]  # once a view
    assert all(parameter.grad is None for parameter in frozen.parameters())
    in_turn = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad():
        theirs = [frozen(view, frozen.base_net) for view in views]
    large, small, base = model(views[0]), model(views[1]), model(views[1], model.base_net)
    expected = [
        F.cross_entropy(large, labels) + 0.5 * divergence(large, theirs[0], 1.0),
        F.cross_entropy(small, labels) + 0.25 * divergence(small, large, 1.0) + 0.5 * divergence(small, theirs[1], 1.0),
        2.0 * divergence(base, theirs[1], 1.0),
    ]
    for result, loss in zip(results, expected, strict=True):
        torch.testing.assert_close(result.loss, loss.detach())
    sum(expected).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(in_turn[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_one_pass_s_activations_are_in_memory_at_a_time():
    """A saved tensor of the first pass is gone when the second one runs."""
    model = tiny("resnet18").train()
    alive, seen = [], []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            alive.append(1)
            seen.append(len(alive))
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            alive.pop()
            return grad

    model.fc.register_forward_pre_hook(lambda _, inputs: (Probe.apply(inputs[0]),))
    step_of(model, Distillation())(adn_passes(model), batch(4), torch.arange(4), backward)
    assert seen == [1, 1]
