"""torch.hub's door, used by programs that have modules `models` and `utils` of their own. Each is a fresh process."""

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


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("models", "utils"):
        (folder / f"{name}.py").write_text('WHOSE = "mine"\n')
    return folder


def test_a_module_models_of_the_user_stays_the_user_s_and_two_checkouts_are_two_packages(
    mine: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "models", other / "models", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", other)
    _run(BEFORE + LOAD + AFTER + TWO, mine, ROOT, other)


def test_the_other_way_round_the_user_s_models_is_not_ours(mine: Path) -> None:
    _run(LOAD + AFTER + LOAD, mine, ROOT)


def test_the_list_has_entry_points_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.hub lists no local folder, but one in its cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "owner_name_main").symlink_to(ROOT)
    assert sorted(torch.hub.list("owner/name:main")) == sorted([*models.MODELS, *RELEASED])
    assert "resnet50, many networks in one set of weights." in torch.hub.help("owner/name:main", "resnet50_adn")


def _run(program: str, folder: Path, *arguments: Path) -> None:
    (folder / "program.py").write_text(program)
    line = [sys.executable, "program.py", *map(str, arguments)]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
