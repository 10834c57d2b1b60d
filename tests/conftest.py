"""What tests of several rooms need, and how they share the cores when pytest-xdist runs them in several processes."""

import fcntl
import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, also for what they start; torch reads it when it is imported
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from tests.launch import launch

DIGITS = (
    "--model resnet20 --data-path digits --train-crop-size 16 --val-resize-size 16 --val-crop-size 16 --epochs 2 "
    "--opt adamw --lr 0.01 --lr-scheduler cosineannealinglr --train-images 1000"
)
# Modules whose tests share what took processes or a training to make, or the GPU: each is one worker's.
TOGETHER = {
    "test_command",
    "test_examples",
    "test_folder",
    "test_gpu",
    "test_gradients",
    "test_onnx",
    "test_predictions",
    "test_speed",
    "test_train_detection",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Whichever worker is free takes the next test, or all of such a module."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = Path(nodeid.partition("::")[0]).stem
            return module if module in TOGETHER else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that the command really trained on the bundled digits; do not write there."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # that of all workers, of whom the first to come trains
    folder = place / "digits_run"
    with open(place / "digits_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            done = launch("train_adn.py", *DIGITS.split(), "--output-dir", folder)
            assert done.returncode == 0, done.stderr
    return folder
