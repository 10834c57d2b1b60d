"""Reading weights: exact, whatever they were wrapped in, and never running what a file holds."""

import argparse
import itertools
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

import models
from tests.tiny import TINY, tiny


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


def rewritten(path: Path, change: Callable[[str, bytes], bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    """The archive with other records, whose sums are right."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path.with_name("other.pth"), "w", packing) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return path.with_name("other.pth")


def refusal(path: Path) -> str:
    with pytest.raises(models.WeightsError) as error:
        models.read_checkpoint(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bytes_that_changed_are_noticed(tmp_path: Path) -> None:
    path, state = tmp_path / "sums.pth", {"weight": torch.ones(4096)}
    torch.save(state, path)
    body = bytearray(path.read_bytes())
    middle = body.index(b"\0\0\x80\x3f" * 16)
    body[middle : middle + 32] = bytes(32)
    path.write_bytes(body)
    assert "sums.pth: not a whole torch file (the bytes of sums/data/0 are not those that were written)" in refusal(
        path
    )


def test_files_without_sums_and_of_the_old_kind_are_read(tmp_path: Path) -> None:
    state = {"weight": torch.arange(9.0)[::2], "shared": torch.ones(1).expand(3)}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    torch.save(state, tmp_path / "no_sums.pth")
    torch.serialization.set_crc32_options(True)
    for name in ("old.pth", "no_sums.pth"):
        read = models.read_checkpoint(tmp_path / name)
        assert all(torch.equal(read[key], value) for key, value in state.items())


def test_a_file_may_not_become_more_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / "much.pth"
    torch.save({"weight": torch.zeros(1_000_000)}, path)
    packed = rewritten(path, lambda name, body: body, zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < 10_000
    assert re.search(r"a torch file is not packed, this one would become 4\d{6} bytes", refusal(packed))
    for whole in (True, False):
        for content in (
            {"args": argparse.Namespace(a=[{"b": torch.zeros(1).expand(10**12)}])},
            {"a": torch.zeros(0, 9)},
        ):
            torch.save(content, path, _use_new_zipfile_serialization=whole)
            if "args" in content:
                assert "it has a tensor of 1000000000000 elements, more than the file holds" in refusal(path)
            else:
                assert models.read_checkpoint(path)["a"].shape == (0, 9)


def test_a_tensor_does_not_reach_beyond_its_record(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(1000.0), "bias": torch.ones(2000)}, tmp_path / "long.pth")
    short = rewritten(tmp_path / "long.pth", lambda name, body: body[:16] if name.endswith("data/0") else body)
    assert re.search("record size .* does not match|its tensors have more bytes than its records", refusal(short))


def test_tensors_without_values_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        torch.save(models.resnet20().state_dict(), tmp_path / "meta.pth")
    assert "it has a tensor without values, or one that is not dense: meta" in refusal(tmp_path / "meta.pth")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    assert "not dense: cpu, torch.sparse_coo" in refusal(tmp_path / "sparse.pth")


def test_content_that_holds_itself_is_read(tmp_path: Path) -> None:
    content = {"weight": torch.ones(1)}
    content["again"] = [content, (content,)]
    torch.save(content, tmp_path / "loop.pth")
    read = models.read_checkpoint(tmp_path / "loop.pth")
    assert read["again"][0] is read


def test_a_damaged_pickle_is_one_line_whatever_it_does_to_the_reader(tmp_path: Path) -> None:
    """Of the bytes that say what is where each in turn is another; the sums are right."""
    path = tmp_path / "one.pth"
    torch.save({"model": {"weight": torch.ones(3)}, "args": argparse.Namespace(lr=0.1)}, path)
    with zipfile.ZipFile(path) as archive:
        length = len(archive.read("one/data.pkl"))
    refused = []
    for at, byte in itertools.product(range(2, length, 2), b"R."):

        def spoil(name: str, body: bytes, at: int = at, byte: int = byte) -> bytes:
            return body[:at] + bytes([byte]) + body[at + 1 :] if name.endswith(".pkl") else body

        damaged = rewritten(path, spoil)
        try:
            models.read_checkpoint(damaged)
        except models.WeightsError as error:
            refused.append(str(error))
    assert len(refused) > length // 2
    assert not any("\n" in line for line in refused)


def test_settings_of_another_kind_are_one_line() -> None:
    content = {"args": argparse.Namespace(size=224, mode="bilinear", none=None), "classes": ["a", "b"]}
    kinds = {"size": int, "mode": str, "none": int, "other": int}
    assert models.settings_of(content, kinds) == {"size": 224, "mode": "bilinear", "none": None, "other": None}
    assert models.settings_of({"args": 3}, {"size": int}) == {"size": None}
    assert models.words_of(content, "classes") == ["a", "b"]
    assert models.words_of({}, "classes") is None
    content = {"args": argparse.Namespace(size="x"), "classes": 5}
    with pytest.raises(models.WeightsError, match=r"^a.pth: says size='x', which should be of type int"):
        models.settings_of(content, {"size": int}, "a.pth")
    with pytest.raises(models.WeightsError, match=r"^a.pth: its 'classes' should be a list of names, not 5"):
        models.words_of(content, "classes", "a.pth")


@pytest.mark.parametrize("name", TINY)
def test_the_number_of_classes_is_that_of_the_classifier(name: str) -> None:
    model = tiny(name)
    for network in (model, model.view()):
        assert models.num_classes(network.state_dict()) == 7
    with pytest.raises(models.WeightsError, match="has no classifier"):
        models.num_classes({"bias": torch.ones(3)})


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


def test_a_plain_dict_loads_into_modules_that_ask_for_their_version() -> None:
    plain = torchvision.models.mnasnet0_5(num_classes=3)
    other = torchvision.models.mnasnet0_5(num_classes=3)
    models.load_state(other, dict(plain.state_dict()))
    assert all(map(torch.equal, plain.state_dict().values(), other.state_dict().values()))
