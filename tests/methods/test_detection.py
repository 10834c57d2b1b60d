"""A step of Algorithm 1 for detectors, against the formula written out."""

import contextlib
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

from methods.detection import AdaptiveDepth
from models.detection import build
from utils.detection.run import ask_detector, total
from utils.train.step import TrainingStep

IMAGES = [torch.rand(3, 50, 64, generator=torch.Generator().manual_seed(number)) for number in range(2)]
TARGETS = [{"boxes": torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 44]]), "labels": torch.tensor([1, 2])}] * 2


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_step_has_the_gradients_of_the_formula(share: float) -> None:
    model = build("retinanet", "resnet18", 4, width=8, trained_norms=True, min_size=64, max_size=96).double()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 0.0
    images = [image.double() for image in IMAGES]
    method = AdaptiveDepth(Namespace(subpath_alpha=0.4, subpath_temp=2.0, base_labels=share), model)
    step = TrainingStep(model.train(), total, method.distance, contextlib.nullcontext, ask_detector)
    results = step(method.passes(0, 0), images, TARGETS, torch.Tensor.backward)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    of_super, teacher = model(images, TARGETS, model.super_net, return_features=True)
    of_base, student = model(images, TARGETS, model.base_net, return_features=True)
    distance = 0
    for ours, theirs in zip(student, teacher, strict=True):
        batch, _, height, width = ours.shape
        kl = F.kl_div((ours / 2).log_softmax(1), (theirs.detach() / 2).softmax(1), reduction="sum")
        distance = distance + 4 * kl / (batch * height * width)
    parts = 0.4 * sum(of_super.values()), 0.6 * ((1 - share) * distance + share * sum(of_base.values()))
    sum(parts).backward()
    assert [result.loss.item() for result in results] == pytest.approx([part.item() for part in parts])
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(torch.zeros_like(parameter) if found[name] is None else found[name], expected, atol=1e-9)
