"""Loader workers: started early, ended by their main process alone, and never with more than /dev/shm can hold."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sampler import TrainBatches
from tests.data.loader_program import WAYS
from tests.data.test_loading import arguments
from tests.launch import ENVIRONMENT, ROOT
from utils.data import loading
from utils.data.loading import eval_loader, load_data, prefetch, start_workers, train_loader
from utils.errors import UserError

linux = pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="elsewhere torch's own handler ends workers")


def digits(workers: int):
    args = arguments("digits", "--train-images", "20", "--val-images", "10", "--workers", str(workers))
    return load_data(args), args


class Spied(TrainBatches):
    asked = 0

    def __iter__(self):
        self.asked += 1
        return super().__iter__()


@pytest.mark.parametrize("workers", [0, 2])
def test_started_workers_load_nothing_until_asked_and_stay(workers):
    data, args = digits(workers)
    order = Spied(len(data.train), args.batch_size)
    loader, expected = train_loader(data, args, order), train_loader(data, digits(0)[1], TrainBatches(20, 4))
    others = set(multiprocessing.active_children())
    start_workers(loader)
    mine = set(multiprocessing.active_children()) - others
    assert len(mine) == workers
    assert order.asked == 0
    for epoch in range(2):
        for sampler in (order, expected.batch_sampler.batches):
            sampler.set_epoch(epoch)
        for ours, theirs in zip(loader, expected, strict=True):
            assert torch.equal(ours.images, theirs.images)
        assert set(multiprocessing.active_children()) - others == mine
    assert len(loader) == 5


def test_there_are_no_more_workers_than_batches():
    data, args = digits(2)
    args.batch_size = 20
    assert eval_loader(data, args).num_workers == 1


def test_started_workers_of_an_evaluation_see_every_image_each_time():
    data, args = digits(2)
    loader = eval_loader(data, args)
    start_workers(loader)
    for _ in range(2):
        assert torch.equal(torch.cat([batch.targets for batch in loader]), data.val.targets)


class Mains:
    """The main processes of tests.data.loader_program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        line = [sys.executable, "-m", "tests.data.loader_program", str(folder)]
        self.program = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT)
        self.numbers = {what: list(map(int, self.read(f"{what}.said").split())) for what in WAYS}  # and the workers'

    def read(self, name: str) -> str:
        """The file of this name, as soon as there is a line in it."""
        deadline = time.monotonic() + 60
        while not (path := self.folder / name).exists() or not path.read_text().endswith("\n"):
            assert time.monotonic() < deadline, [path.read_text() for path in self.folder.iterdir()]
            time.sleep(0.01)
        return path.read_text()

    def end(self, what: str) -> tuple[int, str, str]:
        """Of one that ends: its exit code, what it said last, and its errors."""
        code = int(self.read(f"{what}.code"))
        return code, self.read(f"{what}.said").splitlines()[-1], (self.folder / f"{what}.errors").read_text()


@pytest.fixture(scope="module")
def mains(tmp_path_factory):
    mains = Mains(tmp_path_factory.mktemp("mains"))
    yield mains
    for main, *_ in mains.numbers.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(main, signal.SIGKILL)  # a failed test's workers too
    mains.program.wait()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"  # a dead one that nobody has asked for yet
    except FileNotFoundError:
        return False


@linux
def test_workers_outlive_signals_to_all_and_help_to_finish(mains):
    main, *workers = mains.numbers["go on"]
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.killpg(main, number)
    code, said, errors = mains.end("go on")
    assert (said, code) == ("16", 0), errors
    assert not any(map(alive, workers))


@linux
def test_a_main_process_that_fails_does_not_wait_for_its_workers(mains):
    code, _, errors = mains.end("fail")
    assert code == 1
    assert "on purpose" in errors.splitlines()[-1]
    assert not any(map(alive, mains.numbers["fail"][1:]))


@linux
def test_workers_at_work_end_with_a_main_process_that_is_killed(mains):
    main, *workers = mains.numbers["wait"]
    assert all(map(alive, workers))
    os.kill(main, signal.SIGKILL)
    assert mains.end("wait")[0] == -signal.SIGKILL
    deadline = time.monotonic() + 20  # the image that they are at takes 300
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


@pytest.fixture
def shared_memory(monkeypatch, tmp_path):
    """Sets the free megabytes of what is taken for /dev/shm."""
    monkeypatch.setattr(loading, "SHARED_MEMORY", str(tmp_path))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def free(megabytes: int) -> None:
        answer = SimpleNamespace(f_bavail=megabytes * 250, f_frsize=4000)
        monkeypatch.setattr(os, "statvfs", lambda path: answer)

    return free


def settings(batch_size: int, workers: int, asked: int | None = None):
    return SimpleNamespace(batch_size=batch_size, prefetch=asked), 224, workers


def test_prefetch_is_what_was_asked_for_or_what_memory_has_room_for(shared_memory, monkeypatch):
    shared_memory(100_000)
    assert [prefetch(*settings(batch, 16)) for batch in (32, 128, 256, 512)] == [16, 4, 2, 2]
    assert prefetch(*settings(256, 16, asked=5)) == 5
    shared_memory(64)  # a container's
    assert [prefetch(*settings(32, workers)) for workers in (1, 4, 11)] == [11, 2, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert prefetch(*settings(32, 2)) == 2


@pytest.mark.parametrize(
    ("sizes", "way_out"),
    [((32, 12), "--workers 11"), ((256, 1), "--workers 0"), ((32, 4, 3), "a smaller --prefetch or --workers 3")],
)
def test_batches_that_memory_cannot_hold_are_a_mistake_in_one_line(shared_memory, sizes, way_out):
    shared_memory(64)
    with pytest.raises(UserError, match=rf"has 64 MB .*enlarge it \(docker run --shm-size\) or give {way_out}$"):
        prefetch(*settings(*sizes))


def test_where_there_is_no_dev_shm_prefetch_is_not_bounded(monkeypatch):
    monkeypatch.setattr(loading, "SHARED_MEMORY", "/nowhere")
    assert prefetch(*settings(32, 64)) == 16
