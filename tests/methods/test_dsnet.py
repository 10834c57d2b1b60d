"""Both stages of DS-Net: who learns from whom, what is drawn, what the gate's loss is, and what is refused."""

import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

import models
import train_adn
from methods.dsnet import Gate, GateLoss, Slimmable
from tests.launch import command
from tests.methods.test_adn import settings
from tests.runs import assert_same, content, kill_all, start, steps_done, wait_for_steps
from tests.tiny import tiny
from utils.errors import UserError
from utils.train.losses import Outputs
from utils.train.passes import LABELS
from utils.train.step import TrainingStep

EMA = {"model_ema": True}


@pytest.fixture
def model() -> models.ManyNetworks:
    torch.manual_seed(0)
    widths = ((4, 8), (8, 12), (8, 12), range(12, 37, 4), range(12, 37, 4))
    return models.build("slimmable_mbnet_v1_small", num_classes=5, widths=widths, blocks=(1, 1, 1, 1))


def images() -> torch.Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_step_is_the_largest_two_drawn_and_the_smallest(model):
    method = Slimmable(settings(**EMA), model)
    assert method.tested == {"smallest": "smallest", "largest": "largest"}
    drawn = Counter()
    for epoch in range(3):
        for step in range(100):
            passes = method.passes(epoch, step)
            assert passes == method.passes(epoch, step)
            assert [this.role for this in passes] == list(method.roles)
            assert [this.subnet for this in passes[::3]] == ["largest", "smallest"]
            targets = [LABELS, *[method.teacher] * 3]
            assert [this.targets for this in passes] == [((target, 1.0),) for target in targets]
            drawn.update(this.subnet for this in passes[1:3])
    step = TrainingStep(model, None, method.distance, None)
    assert step.reaches_all(passes)  # the gate, which runs in none, is not trained
    assert set(drawn) == {f"uniform_{number}" for number in range(1, 7)}
    assert min(drawn.values()) > 70
    assert method.passes(0, 0) != Slimmable(settings(seed=1, **EMA), model).passes(0, 0)
    assert {this.targets for this in Slimmable(settings("--bootstrap off", model_ema=False), model).passes(0, 0)} == {
        ((LABELS, 1.0),)
    }


def test_the_average_s_largest_teaches_by_its_probabilities(model):
    """And in the ensemble the smallest also learns from two of its others, the mean of the three."""
    average = models.build("slimmable_mbnet_v1_small", num_classes=5).eval()
    for flags in ("", "--bootstrap ensemble"):
        method = Slimmable(settings(flags, **EMA), model)
        method.average = average
        step = TrainingStep(model.train(), F.cross_entropy, method.distance, torch.enable_grad)
        passes, losses = method.passes(0, 0), []
        logits = [result.logits for result in step(passes, images(), torch.arange(8) % 5, losses.append)]
        with torch.no_grad():
            theirs = average(images()).softmax(dim=1)
        for loss, ours in zip(losses[1:3], logits[1:3], strict=True):
            torch.testing.assert_close(loss.detach(), -(theirs * ours.log_softmax(dim=1)).sum(dim=1).mean())
        if flags:
            others = [target.keywords["subnet"] for target, _ in passes[-1].targets[1:]]
            assert len(others) == 2
            with torch.no_grad():
                theirs = (theirs + sum(average(images(), other).softmax(dim=1) for other in others)) / 3
        torch.testing.assert_close(losses[3].detach(), -(theirs * logits[3].log_softmax(dim=1)).sum(dim=1).mean())


def test_the_gate_learns_where_the_smallest_network_is_right(model):
    args = settings("--gate-cost 0.25", weights="x", label_smoothing=0.1, init_from=None, resume="")
    method, before = Gate(args, model.train()), {name: value.clone() for name, value in model.state_dict().items()}
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        name for name in before if ".gate.gate." in name
    ]
    labels = model.eval()(images(), "smallest").argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 5
    assert method.right(images(), labels).logits.tolist() == [False] * 3 + [True] * 5
    assert torch.equal(method.right(images(), F.one_hot(labels, 5).float()).logits, method.right(images(), labels)[0])
    step = TrainingStep(model.train(), F.cross_entropy, method.distance, torch.enable_grad)
    (result,) = step(method.passes(0, 0), images(), labels, lambda loss: loss.backward())
    assert model.training
    assert result.loss.isfinite()
    assert model.gate[0].weight.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_gate_s_loss_is_the_official_or_the_corrected_formula():
    logits, drawn, right = torch.randn(4, 4), torch.rand(4, 4), torch.tensor([True, False, True, False])
    spent = torch.tensor([0.1, 0.2, 0.3, 0.4])
    student, target = Outputs(logits, [logits, drawn, spent, 2 * spent]), torch.tensor([0, 3, 0, 3])
    official, corrected = GateLoss(True, 0.5, 0.1), GateLoss(False, 0.5, 0.1)
    torch.testing.assert_close(
        official(student, Outputs(right)), F.cross_entropy(drawn, target, label_smoothing=0.1) + torch.tensor(0.125)
    )
    expected = F.cross_entropy(logits, target, label_smoothing=0.1) + torch.tensor(0.5 * 0.0625)
    torch.testing.assert_close(corrected(student, Outputs(right)), expected)


def test_what_cannot_be_is_refused(model):
    with pytest.raises(UserError, match="--method dsnet learns from the moving average: give --model-ema, or --boot"):
        Slimmable(settings(model_ema=False), model)
    with pytest.raises(UserError, match="--method dsnet-gate: --model resnet20 has no gate"):
        Gate(settings(model="resnet20"), tiny("resnet20"))
    with pytest.raises(UserError, match="gate of a trained network: give --weights or --init-from"):
        Gate(settings(weights=None, init_from=None, resume=""), model)


@pytest.mark.parametrize("method", ["dsnet --bootstrap ensemble --model-ema --model-ema-steps 1", "dsnet-gate"])
@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_to_the_same_bits(method, model, tmp_path, capsys):
    """And is tested with what its images took."""
    data = "--data-path digits --train-images 48 --val-images 20 --train-crop-size 16 --val-resize-size 16"
    line = f"--model slimmable_mbnet_v1_small --method {method} {data} --val-crop-size 16 --batch-size 8 --lr 0.05"
    epochs = 8 if method == "dsnet-gate" else 2  # its steps are so quick that two epochs might end before the kill
    line = (
        f"{line} --epochs {epochs} --checkpoint-steps 1 --print-freq 1 --calibrate 2 --device cpu --workers 0".split()
    )
    if method == "dsnet-gate":
        torch.save(models.build("slimmable_mbnet_v1_small", num_classes=10).state_dict(), tmp_path / "weights.pth")
        line += ["--weights", str(tmp_path / "weights.pth")]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(command("train_adn.py", *line, "--output-dir", broken), broken)
    wait_for_steps(process, broken, 8)
    kill_all(process)
    assert 8 <= steps_done(broken) < 6 * epochs, (broken / "output.txt").read_text()
    assert train_adn.main([*line, "--output-dir", str(whole)]) == 0
    assert train_adn.main([*line, "--output-dir", str(broken), "--resume", "auto"]) == 0
    assert "Resumed" in capsys.readouterr().out
    one, other = content(whole), content(broken)
    for part in ("model", "optimizer", "statistics", *(["model_ema"] if "ema" in method else [])):
        assert_same(one[part], other[part], part)
    if method == "dsnet-gate":
        test = ["--test-only", *data.split(), "--val-crop-size", "16", "--weights", str(whole / "checkpoint.pth")]
        test += ["--skip-cfg", "uniform_3", "gate", "--device", "cpu", "--output-dir", str(tmp_path)]
        assert train_adn.main(test) == 0
        rows = {row["name"]: row for row in json.loads((tmp_path / "subnets.json").read_text())["subnets"]}
        assert rows["gate"]["gmacs"] <= rows["uniform_3"]["gmacs"] + 1e-6
        assert f"at {rows['gate']['gmacs']:.4f} GMACs an image" in capsys.readouterr().out
        assert one["trained"] == ["gate", "smallest"]
