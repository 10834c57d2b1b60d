"""A file for ExecuTorch has a method a sub-network, which share weights, and its facts beside it."""

import json
from pathlib import Path

import pytest
import torch

from deploy import writing
from deploy.switch import Wanted
from tests.deploy.shallow import batch, shallow

runtime = pytest.importorskip("executorch.runtime", reason="needs pip install -e '.[executorch]'")
to_executorch = pytest.importorskip("deploy.to_executorch", reason="needs pip install -e '.[executorch]'")


def test_a_method_a_depth(tmp_path: Path) -> None:
    model, path = shallow("mobilenet"), tmp_path / "network.pte"
    subnets = [model.parse(word) for word in ("FFF", "FFT")]
    size, alone, _ = writing.write(to_executorch, Wanted(model, subnets, batch(3), False, {"batch": 3}), path)
    assert alone < size < 2 * alone  # three methods, which share what they can
    assert json.loads((tmp_path / "network.pte.json").read_text()) == {"batch": 3}
    program = runtime.Runtime.get().load_program(path)
    assert program.method_names == {"FFF", "FFT", "forward"}
    for name, skip in (("FFF", subnets[0]), ("FFT", subnets[1]), ("forward", subnets[0])):
        (logits,) = program.load_method(name).execute([batch(3)])
        torch.testing.assert_close(logits, model(batch(3), skip), rtol=1e-4, atol=1e-5)
