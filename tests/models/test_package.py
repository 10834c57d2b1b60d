"""What `pip install .` installs: built, installed into an empty folder and used from there, without a network."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import ENVIRONMENT, ROOT

USE = """
import importlib.metadata
import sys
import torch
import adaptive_depth as ad

network = ad.resnet18(num_classes=7).eval()
images = torch.ones(2, 3, 64, 64)
with torch.no_grad():
    logits = network(images, skip=network.base_net)
    assert torch.equal(network.extract(network.base_net)(images), logits)
assert network.cost(network.base_net, 64).macs < network.cost(image_size=64).macs
assert ad.zoo.named("DEFAULT", "resnet50") is ad.zoo.ResNet50_ADN_Weights.V2
assert ad.build("swin_t").num_skippable_stages == 4
assert ad.calibrate(network, [images]) == network.calibrate([images]) > 0
torch.save(network.state_dict(), "weights.pth")
ad.load_state(network, ad.model_state(ad.read_checkpoint("weights.pth")))
assert "torch" in " ".join(importlib.metadata.requires("adaptive-depth"))
print(*(name for name in ("models", "utils", "methods") if name in sys.modules))
print(ad.__file__)
"""


def run(*line: object, **options: object) -> str:
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_package_is_installed_and_works_where_nothing_else_is(tmp_path: Path) -> None:
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.partition(".")[0]) < 71:
        pytest.skip(f"setuptools {version} builds no wheel by itself")
    source, site, empty = tmp_path / "source", tmp_path / "site", tmp_path / "empty"
    source.mkdir()
    empty.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("models", "utils", "methods", "data"):  # of which one is to be installed
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = "--quiet --no-deps --no-index --no-build-isolation --disable-pip-version-check --no-compile"
    run(sys.executable, "-m", "pip", "install", *options.split(), "--target", site, source)
    top = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"adaptive_depth"}
    installed, sources = (
        {path.relative_to(folder) for path in folder.rglob("*.py")}
        for folder in (site / "adaptive_depth", ROOT / "models")
    )
    assert installed == sources
    printed = run(sys.executable, "-c", USE, cwd=empty, env={**ENVIRONMENT, "PYTHONPATH": str(site)})
    assert printed.splitlines() == ["", str(site / "adaptive_depth" / "__init__.py")]
