"""What tests of several rooms need, and how they share the cores when pytest-xdist runs them in several processes."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, also for what they start; torch reads it when it is imported
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from tests.launch import launch

DIGITS = (
    "--model resnet20 --data-path digits --train-crop-size 16 --val-resize-size 16 --val-crop-size 16 --epochs 2 "
    "--opt adamw --lr 0.01 --lr-scheduler cosineannealinglr"
)

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares the digits' run, or the GPU, is one worker's: the run is made once, the GPU is used by one process.

    Modules whose tests share something else that is costly say so themselves, by the same mark.
    """
    for item in items:
        if "digits_run" in item.fixturenames or item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.xdist_group("digits_run"))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that the command really trained on the bundled digits; do not write there."""
    folder = tmp_path_factory.mktemp("digits_run")
    done = launch("train_adn.py", *DIGITS.split(), "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder
