"""Parameter groups, schedules and the moving average, against torch's own and by their definitions."""

import argparse
import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import methods
from tests.tiny import tiny
from utils.flags.arguments import parser
from utils.train import optim


def args_of(flags: str = "") -> argparse.Namespace:
    return parser(methods).parse_args(flags.split())


def decay_by_name(model: nn.Module, flags: str) -> dict[str, float]:
    groups = optim.build_optimizer(model, args_of(flags)).param_groups
    by_id = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(by_id) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    return {name: by_id[id(parameter)] for name, parameter in model.named_parameters()}


def test_norms_biases_and_embeddings_decay_as_asked():
    flags = "--wd 0.5 --norm-weight-decay 0.1 --bias-weight-decay 0.2 --transformer-embedding-decay 0.3"
    resnet = decay_by_name(tiny("resnet50"), flags)
    assert resnet["layer1.0.conv1.weight"] == resnet["fc.weight"] == 0.5
    assert resnet["layer1.0.bn1.weight"] == resnet["layer1.0.bn1_skip.weight"] == 0.1
    assert resnet["layer1.0.bn1_skip.bias"] == resnet["fc.bias"] == 0.2
    vit = decay_by_name(tiny("vit_b_16"), flags)
    assert vit["class_token"] == vit["encoder.pos_embedding"] == 0.3
    assert vit["encoder.layers.encoder_layer_0.ln_1_skip.weight"] == 0.1
    swin = decay_by_name(tiny("swin_t"), flags)
    assert {value for name, value in swin.items() if "relative_position_bias_table" in name} == {0.3}
    assert {value for name, value in swin.items() if "norm" in name and "weight" in name} == {0.1}


def test_without_flags_everything_decays_alike():
    assert set(decay_by_name(tiny("vit_b_16"), "--wd 0.5").values()) == {0.5}
    assert len(optim.build_optimizer(tiny("vit_b_16"), args_of("--wd 0.5")).param_groups) == 1


@pytest.mark.parametrize(
    ("flags", "kind", "settings"),
    [
        ("", torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ("--opt sgd_nesterov --momentum 0.8", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ("--opt RMSprop", torch.optim.RMSprop, {"eps": 0.0316, "alpha": 0.9, "momentum": 0.9}),
        ("--opt adamw --lr 0.001", torch.optim.AdamW, {"lr": 0.001, "betas": (0.9, 0.999)}),
    ],
)
def test_an_optimizer_has_the_settings_that_were_asked_for(flags, kind, settings):
    optimizer = optim.build_optimizer(tiny("resnet18"), args_of(flags))
    assert type(optimizer) is kind
    assert settings.items() <= optimizer.param_groups[0].items()


GIVEN = {
    "": partial(torch.optim.SGD, momentum=0.9, fused=True),
    "--opt sgd_nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True, fused=True),
    "--opt sgd --momentum 0": partial(torch.optim.SGD, fused=True),
    "--opt adamw": partial(torch.optim.AdamW, fused=True),
    "--opt rmsprop": partial(torch.optim.RMSprop, momentum=0.9, eps=0.0316, alpha=0.9, foreach=True),
}


def set_gradients(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("flags", GIVEN)
def test_steps_have_the_bits_of_torch_s_and_leave_frozen_parameters_alone(flags):
    """Made beforehand, the momentum changes nothing; and a frozen parameter keeps its number, without a state."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4))
    model[1].requires_grad_(False)
    other = copy.deepcopy(model)
    args = args_of(f"{flags} --lr 0.1 --wd 0.01")
    ours = optim.build_optimizer(model, args)
    theirs = GIVEN[flags](other.parameters(), lr=0.1, weight_decay=0.01)
    for step in range(3):
        for each, optimizer in ((model, ours), (other, theirs)):
            set_gradients(each, seed=step)
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert ours.state_dict()["state"].keys() == theirs.state_dict()["state"].keys() <= {0, 1, 4, 5}
    assert ours.param_groups[0]["params"] == list(model.parameters())


@pytest.mark.parametrize("flags", GIVEN)
def test_an_overflow_in_the_first_fp16_step_leaves_no_trace(flags, monkeypatch):
    """torch's fused SGD leaves its momentum uninitialised then, and takes for it whatever the memory holds."""
    made = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: made(*args, **kwargs).fill_(1e30))
    model = nn.Linear(8, 4)
    expected = copy.deepcopy(model)
    optimizer = optim.build_optimizer(model, args_of(f"{flags} --lr 0.1 --wd 0.01"))
    scaler = torch.amp.GradScaler("cpu")
    for step, scale in enumerate((float("inf"), 1.0)):
        scaler.scale(torch.zeros(()))  # makes the scale, as the scaled loss does
        set_gradients(model, seed=step, scale=scale * scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    set_gradients(expected, seed=1)
    GIVEN[flags](expected.parameters(), lr=0.1, weight_decay=0.01).step()
    assert torch.equal(model.weight, expected.weight)


def test_a_parameter_whose_gradient_comes_late_has_its_momentum():
    """Random sub-networks: torch's SGD cannot begin with some buffers missing."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = optim.build_optimizer(model, args_of("--lr 0.1 --wd 0"))
    before = model[1].weight.clone()
    model[0].weight.grad = torch.ones(8, 8)
    optimizer.step()
    assert torch.equal(model[1].weight, before)
    model[1].weight.grad = torch.ones(8, 8)
    optimizer.step()
    assert torch.equal(model[1].weight, before - 0.1)


def rates(flags: str, epochs: int) -> list[float]:
    """The learning rate of each epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = optim.build_scheduler(optimizer, args_of(f"--lr 1 --epochs {epochs} {flags}"))
    values = []
    for _ in range(epochs):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_rates_are_those_of_the_schedule():
    assert rates("--lr-step-size 2", 5) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert rates("--lr-scheduler multisteplr --lr-multi-steps 1 3 --lr-gamma 0.5", 4) == pytest.approx(
        [1, 0.5, 0.5, 0.25]
    )
    assert rates("--lr-scheduler exponentiallr --lr-gamma 0.5", 3) == pytest.approx([1, 0.5, 0.25])
    assert rates("--lr-scheduler linearlr", 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates("--lr-scheduler cosineannealinglr --lr-min 0.2", 4) == pytest.approx(
        [1, 0.882843, 0.6, 0.317157], abs=1e-5
    )


def test_warm_up_comes_first_and_the_cosine_gets_the_rest():
    flags = "--lr-scheduler cosineannealinglr --lr-warmup-epochs 2 --lr-warmup-method linear --lr-warmup-decay 0.1"
    assert rates(flags, 4) == pytest.approx([0.1, 0.55, 1, 0.5])
    constant = "--lr-warmup-epochs 2 --lr-warmup-decay 0.1 --lr-step-size 1"
    assert rates(constant, 4) == pytest.approx([0.1, 0.1, 1, 0.1])


@pytest.mark.parametrize("warmup", [1, 2, 5])
def test_a_run_shorter_than_its_warm_up_goes_through(warmup):
    flags = f"--lr-scheduler cosineannealinglr --lr-warmup-epochs {warmup} --lr-warmup-method linear"
    assert len(rates(flags, 2)) == 2


def test_the_moving_average_equals_torch_s():
    model = tiny("resnet18").train()
    ours = optim.MovingAverage(model, decay=0.7, every=2)
    theirs = AveragedModel(model, avg_fn=lambda a, m, _: 0.7 * a + 0.3 * m, use_buffers=True)
    for step in range(5):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(1 if not tensor.is_floating_point() else 0.1)
        ours.update(model, step, warming_up=False)
        if step % 2 == 0:
            theirs.update_parameters(model)
    state = ours.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert state["n_averaged"] == 3
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(state[name], tensor)


def test_during_warm_up_the_average_is_the_model():
    model = tiny("resnet18")
    average = optim.MovingAverage(model, decay=0.9, every=1)
    for step in range(3):
        model.fc.bias.data.add_(1)
        average.update(model, step, warming_up=True)
    assert torch.equal(average.module.fc.bias, model.fc.bias)
    model.fc.bias.data.add_(1)
    average.update(model, 3, warming_up=False)
    assert torch.equal(average.module.fc.bias, model.fc.bias)  # the first after it still copies
    model.fc.bias.data.add_(1)
    average.update(model, 4, warming_up=False)
    torch.testing.assert_close(average.module.fc.bias, model.fc.bias - 0.9)


def test_the_decay_is_adjusted_to_batch_steps_and_epochs():
    args = args_of("--model-ema --model-ema-decay 0.99998 --model-ema-steps 32 --batch-size 256 --epochs 600")
    average = optim.MovingAverage.of(tiny("resnet18"), args, processes=4)
    assert average.decay == pytest.approx(1 - 0.00002 * 4 * 256 * 32 / 600)


def test_weights_that_are_not_finite_are_seen():
    model = tiny("resnet18")
    assert optim.all_finite(model.parameters())
    model.fc.bias.data[3] = float("nan")
    assert not optim.all_finite(model.parameters())


def test_a_warm_up_of_steps_comes_to_the_schedules_rate() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    rates = []
    for epoch, step in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0)):
        with optim.warming_up(optimizer, 3, epoch, step):
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.125, 0.25, 0.375, 0.5, 0.5]
    assert optimizer.param_groups[0]["lr"] == 0.5
