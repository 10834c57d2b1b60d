"""The methods as lists of passes, and what they leave alone."""

from argparse import ArgumentParser, Namespace

import pytest
import torch

from methods import METHODS, add_flags
from methods.adn import AdaptiveDepth, Individual
from tests.tiny import batch, tiny
from utils.errors import UserError
from utils.train.losses import Outputs, mean_over_space
from utils.train.passes import LABELS, Pass


def settings(flags: str = "", **others: object) -> Namespace:
    parser = ArgumentParser()
    add_flags(parser.add_argument_group())
    return Namespace(**{"seed": 0, **vars(parser.parse_args(flags.split())), **others})


def test_super_net_learns_from_labels_and_base_net_from_it():
    model = tiny("resnet18")
    method = AdaptiveDepth(settings("--subpath-alpha 0.4 --subpath-temp 2 --subpath-topk 7 --fpn"), model)
    expected = [Pass("super", model.super_net, ((LABELS, 0.4),)), Pass("base", model.base_net, ((0, 0.6),))]
    assert method.passes(epoch=0, step=0) == method.passes(epoch=3, step=9) == expected
    assert (method.distance.temperature, method.distance.topk, method.distance.features) == (2.0, 7, mean_over_space)
    assert method.tested == {"super": model.super_net, "base": model.base_net}


def test_the_ablation_learns_from_labels_alone():
    method = AdaptiveDepth(settings("--no-distillation"), tiny("resnet18"))
    assert [this.targets for this in method.passes(0, 0)] == [((LABELS, 0.5),), ((LABELS, 0.5),)]


def test_labels_take_their_share_of_the_base_net_s_loss_alone():
    method = AdaptiveDepth(settings("--subpath-alpha 0.4 --base-labels 0.25 --middle 1"), tiny("resnet18"))
    of_base = ((LABELS, 0.3 * 0.25), (0, 0.3 * 0.75))
    assert [this.targets for this in method.passes(0, 0)] == [((LABELS, 0.4),), of_base, of_base]
    for share, ablation in (("0", ""), ("1", "--no-distillation")):
        same = [AdaptiveDepth(settings(f), tiny("resnet18")).passes(0, 0) for f in (f"--base-labels {share}", ablation)]
        assert same[0] == same[1]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_16", "swin_t"])
def test_an_individual_network_freezes_what_only_others_use(name):
    model = tiny(name)
    method = Individual(settings(skip_cfg=["base"]), model)
    assert method.passes(0, 0) == [Pass("T" * model.num_skippable_stages, model.base_net, ((LABELS, 1.0),))]
    model.train()(batch(4), model.base_net).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert sum(p.numel() for n, p in model.named_parameters() if n in trained) == model.cost(model.base_net).parameters


def test_one_network_alone_is_one():
    with pytest.raises(UserError, match=r"trains one network; --skip-cfg names 16"):
        Individual(settings(skip_cfg=["all"]), tiny("resnet18"))
    with pytest.raises(UserError, match=r"--skip-cfg: 'TTF' has 3 flags"):
        Individual(settings(skip_cfg=["TTF"]), tiny("resnet18"))
    ours, others = {"adn", "individual", "drawn"}, {"slimmable", "sandwich", "dsnet", "dsnet-gate", "san"}
    assert set(METHODS) == ours | others
    assert torch.is_grad_enabled()


def test_middle_networks_share_the_base_net_s_weight_and_are_drawn_anew_in_each_step():
    model = tiny("resnet20")
    method = AdaptiveDepth(settings("--subpath-alpha 0.4 --middle 2"), model)
    assert method.roles == ("super", "base", "middle1", "middle2")
    drawn = []
    for step in range(200):
        passes = method.passes(1, step)
        assert [this.role for this in passes] == list(method.roles)
        assert passes[0].targets == ((LABELS, 0.4),)
        assert {this.targets for this in passes[1:]} == {((0, (1 - 0.4) / 3),)}
        drawn.append([this.subnet for this in passes[2:]])
    assert all(len(set(pair)) == 2 for pair in drawn)
    counts = [sum(subnet in pair for pair in drawn) for subnet in model.subnets]
    assert counts[0] == counts[-1] == 0
    assert min(counts[1:-1]) > 40  # of 67
    again = AdaptiveDepth(settings("--subpath-alpha 0.4 --middle 2"), model)
    assert [[this.subnet for this in again.passes(1, step)[2:]] for step in range(200)] == drawn
    for other in (settings("--middle 2", seed=1), settings("--middle 2")):
        epoch = 1 + (other.seed == 0)
        moved = AdaptiveDepth(other, model)
        assert [[this.subnet for this in moved.passes(epoch, step)[2:]] for step in range(200)] != drawn
    many = AdaptiveDepth(settings("--middle 8 --no-distillation"), model).passes(0, 0)
    assert len(many) == 10
    assert {this.subnet for this in many} == set(model.subnets)
    assert {this.targets for this in many[1:]} == {((LABELS, 0.5 / 9),)}


def test_features_of_a_network_without_any_are_refused():
    distance = AdaptiveDepth(settings("--fpn"), tiny("resnet18")).distance
    logits = torch.zeros(2, 10)
    with pytest.raises(UserError, match="--fpn: the stages of this network give no features"):
        distance(Outputs(logits), Outputs(logits))
