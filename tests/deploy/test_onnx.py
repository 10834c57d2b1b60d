"""One ONNX file of all depths, of every family, gives torch's logits in onnxruntime; what is broken is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from deploy import writing
from deploy.switch import Wanted
from tests.deploy.shallow import FAMILIES, SIZE, batch, shallow
from utils.errors import UserError

pytest.importorskip("onnx", reason="needs pip install -e '.[onnx]'")
pytest.importorskip("onnxscript", reason="needs pip install -e '.[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install -e '.[onnx]'")
ir = pytest.importorskip("onnx_ir", reason="needs pip install -e '.[onnx]'")
to_onnx = pytest.importorskip("deploy.to_onnx")

FACTS = {"classes": ["a", "b"]}


def wanted(model: models.AdaptiveDepth, words: list[str] | None = None, dynamic: bool = True) -> Wanted:
    return Wanted(model, [model.parse(word) for word in words] if words else model.subnets, batch(), dynamic, FACTS)


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[models.AdaptiveDepth, Path]:
    model, path = shallow("mobilenet"), tmp_path_factory.mktemp("onnx") / "mobilenet.onnx"
    to_onnx.save(wanted(model), path)
    return model, path


def worst(model: models.AdaptiveDepth, path: Path, counts: tuple[int, ...] = (1, 5)) -> float:
    """The largest relative difference of all sub-networks, by nothing of the exporter's."""
    session, found = onnxruntime.InferenceSession(path), []
    for images in map(batch, counts):
        for skip in model.subnets:
            with torch.no_grad():
                expected = model(images, skip).numpy()
            (logits,) = session.run(None, {"images": images.numpy(), "skip": np.array(skip)})
            found.append(np.abs(logits - expected).max() / np.abs(expected).max())
    return max(found)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"mobilenet"}))
def test_every_depth_of_every_family(family: str, tmp_path: Path) -> None:
    model, path = shallow(family), tmp_path / "all.onnx"
    to_onnx.save(wanted(model), path)
    assert worst(model, path) < 1e-4
    assert to_onnx.faults(path) == []


def test_the_tail_has_a_switch_and_the_facts_are_inside(mobilenet: tuple[models.AdaptiveDepth, Path]) -> None:
    model, path = mobilenet
    assert worst(model, path) < 1e-4
    assert to_onnx.faults(path) == writing.leaks(path) == []
    file = ir.load(path)
    assert [node.op_type for node in file.graph].count("If") == model.num_skippable_stages + 1
    assert json.loads(file.metadata_props["adaptive_depth"]) == FACTS
    assert all(branch.initializers for branch in list(file.graphs())[1:])


def test_statistics_of_every_prefix_are_honoured(tmp_path: Path) -> None:
    """Without them the logits are others: the calibrated network is not the one of before."""
    model, path = shallow("mobilenet"), tmp_path / "calibrated.onnx"
    before = model(batch(), model.base_net)
    models.calibrate(model, [torch.rand(8, 3, SIZE, SIZE)], [s for s in model.subnets if s != (True, False, True)])
    assert not torch.allclose(model(batch(), model.base_net), before, atol=1e-3)
    to_onnx.save(wanted(model), path)
    assert worst(model, path) < 1e-4


def test_one_depth_by_itself_and_a_fixed_batch(mobilenet: tuple[models.AdaptiveDepth, Path], tmp_path: Path) -> None:
    model, _ = mobilenet
    path, word = tmp_path / "one.onnx", "TFT"
    _, alone, worst_of = writing.write(to_onnx, wanted(model, [word], dynamic=False), path)
    assert alone is None
    assert list(worst_of) == [model.parse(word)]
    (given,) = onnxruntime.InferenceSession(path).get_inputs()
    assert (given.name, given.shape) == ("images", [2, 3, SIZE, SIZE])


def test_large_networks_have_a_file_of_weights_beside(
    mobilenet: tuple[models.AdaptiveDepth, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = mobilenet
    monkeypatch.setattr(to_onnx, "LIMIT", 1000)
    size, _, _ = writing.write(to_onnx, wanted(model, ["FFF"]), tmp_path / "large.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert size > 4 * sum(p.numel() for p in model.view(model.super_net).parameters()) > 100_000


def swapped(file: Any) -> None:
    """The two branches of the second stage."""
    node = [node for node in file.graph if node.op_type == "If"][1]
    then, other = node.attributes.pop("then_branch"), node.attributes.pop("else_branch")
    node.attributes["then_branch"] = ir.AttrGraph("then_branch", other.as_graph())
    node.attributes["else_branch"] = ir.AttrGraph("else_branch", then.as_graph())


def one_norm(file: Any) -> None:
    """Both branches use the norm of one of them, in the first place where there are two."""
    node = next(node for node in file.graph if node.op_type == "If")
    one, two = (
        next(n for n in node.attributes[name].as_graph() if n.op_type == "BatchNormalization")
        for name in ("then_branch", "else_branch")
    )
    for place in range(1, 5):
        two.inputs[place].const_value = one.inputs[place].const_value


def not_moved(file: Any) -> None:
    """As torch leaves it: a weight of one branch is a weight of the whole."""
    branch = next(graph for graph in file.graphs() if graph is not file.graph)
    name, weight = branch.initializers.popitem()
    file.graph.initializers[name] = weight


def not_stripped(file: Any) -> None:
    next(iter(file.graph)).metadata_props["pkg.torch.onnx.stack_trace"] = "a line of code"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (swapped, "differ from torch's"),
        (one_norm, "differ from torch's"),
        (not_moved, "not in the branch"),
        (not_stripped, "notes of the exporter's"),
    ],
)
def test_a_broken_file_is_refused_and_leaves_nothing(
    mobilenet: tuple[models.AdaptiveDepth, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable,
    said: str,
) -> None:
    model, good = mobilenet

    def save(wanted: Wanted, path: Path) -> None:
        file = ir.load(good)
        broken(file)
        ir.save(file, path)

    monkeypatch.setattr(to_onnx, "save", save)
    with pytest.raises(UserError, match=said):
        writing.write(to_onnx, wanted(model), tmp_path / "broken.onnx")
    assert list(tmp_path.iterdir()) == []
