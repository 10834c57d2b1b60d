"""One sub-network a step: how often which, on what it learns, and what is refused."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from methods.drawn import Drawn
from tests.methods.test_adn import settings
from tests.tiny import batch, tiny
from utils.errors import UserError
from utils.train.losses import Outputs
from utils.train.passes import LABELS, Pass
from utils.train.step import TrainingStep


def counted(flags: str, seed: int = 0) -> Counter:
    model = tiny("resnet20")
    method = Drawn(settings(flags, seed=seed), model)
    return Counter(model.name(method.passes(epoch, step)[0].subnet) for epoch in range(4) for step in range(500))


def test_networks_are_drawn_as_often_as_asked_for():
    counts = counted("--draw 0.5 0.2")
    shares = {name: count / 2000 for name, count in counts.items()}
    expected = {"FFF": 0.5, "TTT": 0.2, **dict.fromkeys(("FFT", "FTF", "FTT", "TFF", "TFT", "TTF"), 0.05)}
    assert shares == pytest.approx(expected, abs=0.03)
    assert counted("--draw 0.5 0.2") == counts
    assert counted("--draw 0.5 0.2", seed=1) != counts
    assert set(counted("--draw 0.4 0.6")) == {"FFF", "TTT"}
    assert set(counted("--draw 0 1")) == {"TTT"}


def test_a_step_is_one_pass_on_the_labels():
    model = tiny("resnet20")
    method = Drawn(settings(), model)
    (this,) = method.passes(0, 3)
    assert this == Pass("drawn", this.subnet, ((LABELS, 1.0),))
    assert method.tested == {"super": model.super_net, "base": model.base_net}
    assert (tuple(method.roles), method.shares) == (("drawn",), [0.4, 0.3])


def test_the_average_s_super_net_teaches_if_asked_to():
    model, average = tiny("resnet20").train(), tiny("resnet20", switchable_norms=False).requires_grad_(False)
    method = Drawn(settings("--ema-teacher --subpath-alpha 0.25 --subpath-temp 2"), model)
    method.average = average
    seen = []
    step = TrainingStep(
        model, nn.CrossEntropyLoss(), lambda *pair: seen.append(pair) or pair[0].logits.sum(), torch.no_grad
    )
    passes = method.passes(0, 0)
    assert [weight for _, weight in passes[0].targets] == [0.25, 0.75]
    step(passes, batch(4), torch.arange(4), lambda loss: None)
    ((_, teacher),) = seen
    assert isinstance(teacher, Outputs)
    assert torch.equal(teacher.logits, average(batch(4)))
    assert method.distance.temperature == 2.0


def test_shares_of_more_than_all_are_refused():
    with pytest.raises(UserError, match=r"--draw 0.8 0.3: together at most 1"):
        Drawn(settings("--draw 0.8 0.3"), SimpleNamespace(subnets=[0, 1, 2]))
