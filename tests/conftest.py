"""What tests of several rooms need, and how they share the cores when pytest-xdist runs them in several processes."""

import contextlib
import fcntl
import gc
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, also for what they start; torch reads it when it is imported
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OMP_WAIT_POLICY"] = "passive"  # a test's two threads keep no core busy by waiting for each other

import pytest
import torch

import train_adn

DIGITS = (
    "--model resnet20 --data-path digits --train-crop-size 16 --val-resize-size 16 --val-crop-size 16 --epochs 2 "
    "--opt adamw --lr 0.01 --lr-scheduler cosineannealinglr --train-images 1000"
)
Run = Callable[..., tuple[int, str, str]]
# Modules whose tests share what took processes or a training to make, or the GPU: each is one worker's.
TOGETHER = {
    "test_command",
    "test_examples",
    "test_folder",
    "test_gpu",
    "test_gradients",
    "test_onnx",
    "test_predictions",
    "test_slim",
    "test_slimmable_command",
    "test_speed",
    "test_train_detection",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The room of the longest tests first: at the end there are short ones, for all workers."""
    items.sort(key=lambda item: item.path.parent.name != "train")


def pytest_collection_finish() -> None:
    gc.freeze()  # half a million objects are here to stay: every collection would look at them, a tenth of the time


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Whichever worker is free takes the next test, or all of such a module."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = Path(nodeid.partition("::")[0]).stem
            return module if module in TOGETHER else nodeid

    return Scheduling(config, log)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """As in the processes that are started: sums are then taken in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


@pytest.fixture
def run(capfd: pytest.CaptureFixture) -> Run:
    """Runs a command in this process: its exit code, what it said, and on stderr."""

    def run(main: Callable, *words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def mistake(run: Run) -> Callable[..., str]:
    """Runs a command that finds something wrong: exit code 2 and one line, which it gives back."""

    def mistake(main: Callable, *words: object) -> str:
        code, _, said = run(main, *words)
        assert (code, said.count("\n")) == (2, 1), said
        assert re.match(r"(train_\w+\.py|(python -m )?(deploy|tools)\.\w+): error: ", said)
        return said

    return mistake


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
            with single_threaded():
                assert train_adn.main([*DIGITS.split(), "--output-dir", str(folder)]) == 0
    return folder
