"""torch.hub's door, used by programs that have modules `models` and `utils` of their own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import models
from models.zoo import RELEASED
from tests.launch import ENVIRONMENT, ROOT

BEFORE = """
import models
import utils
"""
LOAD = """
import sys
import torch
network = torch.hub.load(sys.argv[1], "resnet20", source="local", num_classes=3)
assert network(torch.ones(1, 3, 32, 32), skip=(True, True, False)).shape == (1, 3)
assert type(network).__module__ == "adaptive_depth.resnet_small"
"""
AFTER = """
import models
import utils
assert (models.WHOSE, utils.WHOSE) == ("mine", "mine")
assert not hasattr(models, "MODELS")
"""
TWO = """
import pickle
other = torch.hub.load(sys.argv[2], "resnet18", source="local")
again = torch.hub.load(sys.argv[1], "resnet18", source="local")
assert type(other) is not type(again)
assert type(pickle.loads(pickle.dumps(other))) is type(other)
assert type(again) is sys.modules["adaptive_depth.resnet"].AdaptiveResNet
"""


EITHER = """
import gc
import os
import torchvision  # the seconds that it takes, and torch, are for both
gc.freeze()
if os.fork():
    assert os.wait()[1] == 0
    exec({!r})
else:
    exec({!r})
"""


def test_a_module_models_of_the_user_stays_the_user_s_and_two_checkouts_are_two_packages(tmp_path: Path) -> None:
    """Whichever is imported first."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    for name in ("models", "utils"):
        (mine / f"{name}.py").write_text('WHOSE = "mine"\n')
    shutil.copytree(ROOT / "models", other / "models", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", other)
    (mine / "program.py").write_text(EITHER.format(BEFORE + LOAD + AFTER + TWO, LOAD + AFTER + LOAD))
    line = [sys.executable, "program.py", str(ROOT), str(other)]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    done = subprocess.run(line, cwd=mine, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_list_has_entry_points_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.hub lists no local folder, but one in its cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "owner_name_main").symlink_to(ROOT)
    assert sorted(torch.hub.list("owner/name:main")) == sorted([*models.MODELS, *RELEASED])
    assert "resnet50, many networks in one set of weights." in torch.hub.help("owner/name:main", "resnet50_adn")
