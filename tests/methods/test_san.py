"""Scale-adaptive training: a step's losses, gradients and statistics against the official code's."""

import contextlib
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from methods.san import ScaleAdaptive
from tests.filled import OF_GRADIENTS, filled, images
from tests.models.test_resolution_golden import GOLDEN, SIZES
from utils.errors import UserError
from utils.train.step import PassResult, TrainingStep


def step(model: nn.Module, views: list[Tensor], labels: Tensor, larger_teach: bool) -> list[PassResult]:
    method = ScaleAdaptive(Namespace(larger_teach=larger_teach), model)
    training = TrainingStep(model.train(), nn.CrossEntropyLoss(), method.distance, contextlib.nullcontext)
    passes = method.passes(0, 0)
    assert training.reaches_all(passes)
    return training(passes, views, labels, lambda loss: loss.backward())


@pytest.mark.parametrize("name", GOLDEN["train_step"])
def test_a_step_equals_the_official_one(name: str) -> None:
    golden = GOLDEN["train_step"][name]
    model = models.build("meta_resnet18")
    model.load_state_dict(filled(model.state_dict()))
    results = step(model, [images(4, size) for size in SIZES], torch.arange(4) * 7, larger_teach=name == "kd")
    losses = [result.loss.item() for result in results]
    assert sum(losses) == pytest.approx(golden["total_loss"], abs=5e-5)
    if name == "no_kd":
        assert losses == pytest.approx(golden["ce_per_branch"], abs=5e-5)
    gradients = {name: None if p.grad is None else p.grad.norm().item() for name, p in sorted(model.named_parameters())}
    assert [name for name, norm in gradients.items() if norm is None] == sorted(golden["none_grads"])
    norms = {name: norm for name, norm in gradients.items() if norm is not None}
    assert norms == pytest.approx({name: norm for name, norm in golden["grads"].items() if norm}, rel=OF_GRADIENTS)
    means = {name: model.get_buffer(name).norm().item() for name in golden["running_mean_norm"]}
    assert means == pytest.approx(golden["running_mean_norm"], rel=1e-4)


def test_passes_in_turn_give_the_gradients_of_one_loss_of_all_branches() -> None:
    torch.manual_seed(0)
    model = models.build("meta_resnet20", num_classes=7, sizes=[32, 24, 16], width=8).double()
    views, labels = [images(6, size).double() for size in model.sizes], torch.arange(6) % 7
    step(model, views, labels, larger_teach=True)
    in_turn = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = list(model.forward_all(views).values())
    loss = sum(F.cross_entropy(one, labels) for one in logits)
    for number, student in enumerate(logits):
        for teacher in logits[:number]:
            target = teacher.detach().softmax(1)
            loss = loss + F.kl_div(student.log_softmax(1), target, reduction="batchmean")
    loss.backward()
    for name, gradient in in_turn.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_a_network_of_one_resolution_is_refused() -> None:
    for model in (models.build("resnet20"), models.build("meta_resnet20", sizes=[32])):
        with pytest.raises(UserError, match="several resolutions"):
            ScaleAdaptive(Namespace(larger_teach=False), model)
