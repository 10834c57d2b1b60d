"""Any network of timm as many in one: small ones of several kinds. They need the extra `timm`."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import models
from models.start import find
from tests.launch import launch
from utils.errors import UserError
from utils.train.run import with_sync_bn

CLASSES = 7
# pixels to test with (the first is of one size), and blocks by stage (mandatory, skippable)
NETWORKS = {
    "test_vit": (160, [(1, 1), (1, 1), (1, 1)]),
    "test_convnext": (64, [(1, 1), (2, 2), (1, 1)]),
    "resnetv2_18": (64, [(1, 1), (1, 1), (1, 1), (1, 1)]),  # batch norms with an activation; a convolution classifies
    "mobilenetv4_conv_small": (64, [(3, 3), (3, 3)]),
}


def images(size: int) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_timm_holds_all_depths(name: str) -> None:
    timm = pytest.importorskip("timm")
    size, blocks = NETWORKS[name]
    torch.manual_seed(0)
    model = models.build(f"timm:{name}", num_classes=CLASSES).eval()
    torch.manual_seed(0)
    plain, x = timm.create_model(name, num_classes=CLASSES).eval(), images(size)
    assert [(len(stage) - len(skipped), len(skipped)) for stage, skipped in model.depth_stages] == blocks
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    for skip in (model.super_net, model.base_net):
        logits, features = model.train()(x, skip, return_features=True)
        F.cross_entropy(logits, torch.arange(4)).backward()
        assert [feature.ndim for feature in features] == [4] * len(blocks)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
        check_sub_networks(model.eval(), type(plain), x)
    assert model.cost(model.base_net).macs < model.cost().macs


def check_sub_networks(model: models.ManyNetworks, kind: type, x: Tensor) -> None:
    """Extracted, copied, saved and calibrated."""
    outputs, base = model.forward_all(x), model.base_net
    assert len({tuple(logits.flatten().tolist()) for logits in outputs.values()}) == 2 ** len(base)
    first = (True, *model.super_net[1:])
    for skip in (base, first):
        plain = model.extract(skip)
        assert type(plain) is kind
        assert torch.equal(plain(x), outputs[skip])
        logits, features = model(x, skip, return_features=True)
        assert torch.equal(logits, outputs[skip])
        assert len(features) == len(base)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    twins[0].load_state_dict(model.state_dict())
    assert all(torch.equal(twin(x, base), outputs[base]) for twin in twins)
    norms = model.calibrate([x, 2 * x], [base])
    assert bool(norms) == any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    if norms:
        twins[0].load_statistics(model.statistics())
        assert not torch.equal(model(x, base), outputs[base])
        assert torch.equal(twins[0](x, base), model(x, base))
        assert torch.equal(model.extract(base)(x), model(x, base))


def test_counting_leaves_a_network_as_it_was() -> None:
    """This one keeps biases of its attention in an attribute; what was counted could not be copied, nor averaged."""
    pytest.importorskip("timm")
    model = models.build("timm:efficientformerv2_s0", num_classes=CLASSES).eval()
    assert model.cost(model.base_net).macs < model.cost().macs
    copy.deepcopy(model)


def test_weights_of_timm_start_a_network(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    plain = timm.create_model("resnetv2_18", num_classes=11).eval()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = models.build("timm:resnetv2_18", num_classes=CLASSES)
    begin = find(str(tmp_path / "plain.pth"), "timm:resnetv2_18")
    fitted = models.load_plain(model, begin.state, new_head=True)
    assert fitted.new == ["head.fc.weight", "head.fc.bias"]
    assert torch.equal(model.stages[1].blocks[0].norm1_skip.weight, plain.stages[1].blocks[0].norm1.weight)
    torch.save({"model": model.state_dict()}, tmp_path / "ours.pth")
    saved = models.read_weights(tmp_path / "ours.pth")
    assert torch.equal(models.network(saved, "timm:resnetv2_18")(images(64)), model.eval()(images(64)))


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("test_byobnet", {}, "timm:test_byobnet: in its lists of modules no residual block follows one of the same"),
        ("test_convnext2", {"image_size": 64, "switchable_norms": True}, "of the same shape"),
        ("resnet18x", {}, "timm has no network resnet18x; did you mean"),
        ("test_vit", {"image_size": 40}, "timm:test_vit: "),
        ("test_vit", {"stem": "small"}, "timm:test_vit has no setting stem; it takes switchable_norms, image_size"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(name: str, settings: dict, problem: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=problem) as error:
        models.build(f"timm:{name}", num_classes=CLASSES, **settings)
    assert "\n" not in str(error.value)


def test_timm_is_asked_for_only_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm:resnet18 needs timm: pip install timm"):
        models.build("timm:resnet18")
    with pytest.raises(ValueError, match="unknown model 'tim:resnet18'"):
        models.build("tim:resnet18")


def test_batch_norms_with_an_activation_are_not_synchronised_without_it() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="hold an activation, which torch's lack"):
        with_sync_bn(models.build("timm:mobilenetv4_conv_small"), torch.device("cuda"))


def test_the_command_trains_and_tests_it(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    data = ["--data-path", "digits", "--train-crop-size", "32", "--val-resize-size", "32", "--val-crop-size", "32"]
    train = ["--model", "timm:test_vit", "--fpn", "--epochs", "1", "--opt", "adamw", "--lr", "0.001", "--output-dir"]
    done = launch("train_adn.py", *data, *train, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    test = ["--test-only", "--weights", tmp_path / "checkpoint.pth", "--output-dir", tmp_path / "test"]
    done = launch("train_adn.py", *data, *test, "--skip-cfg", "all")
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(word in done.stdout + done.stderr for word in ("FFF", "TFF", "FTT", "TTT"))
