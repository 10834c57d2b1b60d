"""Reading weights: exact, whatever they were wrapped in, and never running what a file holds."""

import argparse
import pickle
from pathlib import Path

import pytest
import torch
import torchvision

import models
from tests.tiny import batch, tiny


class Bomb:
    """Unpickling it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.fixture
def model() -> models.AdaptiveDepth:
    return tiny("resnet18")


def test_every_wrapping_is_taken_off(model: models.AdaptiveDepth, tmp_path: Path) -> None:
    state = model.state_dict()
    average = {f"module.{name}": value * 2 for name, value in state.items()} | {"n_averaged": torch.tensor(3)}
    files = {
        "plain": state,
        "ddp": {f"module.{name}": value for name, value in state.items()},
        "compiled ddp": {f"module._orig_mod.{name}": value for name, value in state.items()},
        "checkpoint": {"model": state, "model_ema": average, "epoch": 3, "args": argparse.Namespace(lr=0.1, model="x")},
        "bare average": average,
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        read = models.model_state(models.read_checkpoint(path))
        assert read.keys() == state.keys(), name
        factor = 2 if name == "bare average" else 1
        assert all(torch.equal(read[key], state[key] * factor) for key in state)
    read = models.model_state(models.read_checkpoint(tmp_path / "checkpoint.pth"), ema=True)
    assert all(torch.equal(read[key], state[key] * 2) for key in state)
    with pytest.raises(models.WeightsError, match=r"here: has no averaged weights .*--model-ema"):
        models.model_state({"model": state}, ema=True, source="here")


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name, content in {
        "torch.pth": {"model": {"w": torch.ones(1)}, "extra": Bomb(mark)},
        "legacy.pth": {"extra": Bomb(mark)},
    }.items():
        path = tmp_path / name
        torch.save(content, path, _use_new_zipfile_serialization=name == "torch.pth")
        with pytest.raises(
            models.WeightsError, match=rf"{name}: refused, it contains \S+, and reading it could run code"
        ):
            models.read_checkpoint(path)
    path = tmp_path / "bare.pkl"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(models.WeightsError, match=r"bare.pkl"):
        models.read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole torch file"),
        (b"<!DOCTYPE html><html>", "bad.pth"),
        (None, "No such file"),
    ],
)
def test_what_is_no_weights_file_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(models.WeightsError, match=message) as error:
        models.read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_cut_off_file_is_named(model: models.AdaptiveDepth, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save(model.state_dict(), path)
    whole = path.read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(models.WeightsError, match=r"cut.pth: not a whole torch file"):
            models.read_checkpoint(path)


def test_a_misfit_is_reported_exactly_and_changes_nothing(model: models.AdaptiveDepth) -> None:
    state = model.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    del other["layer1.0.bn1_skip.weight"]
    other["layer9.extra"] = torch.zeros(1)
    other["fc.weight"] = torch.zeros(1000, 512)
    with pytest.raises(models.WeightsError) as error:
        models.load_state(model, other, "file.pth")
    report = str(error.value)
    assert "file.pth: does not fit AdaptiveResNet" in report
    assert "1 missing, 1 unexpected, 1 of another shape" in report
    assert "missing: layer1.0.bn1_skip.weight" in report
    assert "unexpected: layer9.extra" in report
    assert "fc.weight: [1000, 512] in the file, [7, 512] in the model" in report
    assert "another number of classes" in report
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(models.WeightsError) as error:
        models.load_state(model, {}, "empty.pth")
    assert len(str(error.value).splitlines()) < 30
    assert f"{len(before)} missing" in str(error.value)


def test_plain_weights_are_recognised(model: models.AdaptiveDepth) -> None:
    plain = torchvision.models.resnet18(num_classes=7).state_dict()
    with pytest.raises(models.WeightsError, match="--init-from"):
        models.load_state(model, plain, "resnet18.pth")


@torch.no_grad()
def test_a_new_head_stays_as_it_is(model: models.AdaptiveDepth) -> None:
    plain = torchvision.models.resnet18(num_classes=1000).eval()
    head = model.fc.weight.clone()
    with pytest.raises(models.WeightsError, match="another number of classes"):
        models.load_plain(model, plain.state_dict())
    assert models.load_plain(model, plain.state_dict(), new_head=True) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.layer1[0].bn1_skip.weight, plain.layer1[0].bn1.weight)
    plain.fc = torch.nn.Identity()
    model.fc = torch.nn.Identity()
    assert torch.equal(model(batch()), plain(batch()))


def test_adaptive_weights_also_start_a_network(model: models.AdaptiveDepth) -> None:
    twin = models.resnet18(num_classes=7)
    assert models.load_plain(twin, model.state_dict()) == []
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in twin.state_dict().items())


@torch.no_grad()
def test_torchvision_s_enum_starts_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real enum reads the real cache folder; only the file there is ours, under the name that its hash demands."""
    from torchvision.models import ResNet18_Weights
    from torchvision.models._api import Weights

    plain = torchvision.models.resnet18()
    path = tmp_path / "checkpoints" / "resnet18-here.pth"
    path.parent.mkdir()
    torch.save(plain.state_dict(), path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = ResNet18_Weights.IMAGENET1K_V1
    value = weights.value
    monkeypatch.setattr(
        weights, "_value_", Weights(url=f"file:///{path.name}", transforms=value.transforms, meta=value.meta)
    )
    model = models.resnet18(weights=weights)
    assert torch.equal(model.eval()(batch()), plain.eval()(batch()))
    assert list(path.parent.iterdir()) == [path]  # nothing is written: the folder may be somebody else's


def test_a_plain_dict_loads_into_modules_that_ask_for_their_version() -> None:
    plain = torchvision.models.mnasnet0_5(num_classes=3)
    other = torchvision.models.mnasnet0_5(num_classes=3)
    models.load_state(other, dict(plain.state_dict()))
    assert all(map(torch.equal, plain.state_dict().values(), other.state_dict().values()))
