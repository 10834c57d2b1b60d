"""What tests of several rooms need."""

from pathlib import Path

import pytest

from tests.launch import launch

DIGITS = (
    "--model resnet20 --data-path digits --train-crop-size 16 --val-resize-size 16 --val-crop-size 16 --epochs 2 "
    "--opt adamw --lr 0.01 --lr-scheduler cosineannealinglr"
)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that the command really trained on the bundled digits; do not write there."""
    folder = tmp_path_factory.mktemp("digits_run")
    done = launch("train_adn.py", *DIGITS.split(), "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder
