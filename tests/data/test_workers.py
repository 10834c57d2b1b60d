"""Loader workers: started early, ended by their main process alone, and never with more than /dev/shm can hold."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from sampler import TrainBatches
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


@pytest.fixture
def program():
    """Starts tests.data.loader_program in a session of its own, as torchrun does; gives it and its workers' numbers."""
    started = []

    def start(what: str) -> tuple[subprocess.Popen, list[int]]:
        line = [sys.executable, "-m", "tests.data.loader_program", what]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes))
        return started[-1], [int(word) for word in started[-1].stdout.readline().split()]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a failed test's workers too
        process.communicate()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"  # a dead one that nobody has asked for yet
    except FileNotFoundError:
        return False


@linux
def test_workers_outlive_signals_to_all_and_help_to_finish(program):
    main, workers = program("go on")
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.killpg(main.pid, number)
    output, errors = main.communicate(timeout=60)
    assert (output, main.returncode) == ("16\n", 0), errors
    assert not any(map(alive, workers))


@linux
def test_a_main_process_that_fails_does_not_wait_for_its_workers(program):
    main, workers = program("fail")
    _, errors = main.communicate(timeout=60)
    assert main.returncode == 1
    assert "on purpose" in errors.splitlines()[-1]
    assert not any(map(alive, workers))


@linux
def test_workers_at_work_end_with_a_main_process_that_is_killed(program):
    main, workers = program("wait")
    assert all(map(alive, workers))
    main.kill()
    main.wait()
    deadline = time.monotonic() + 20  # the image that they are at takes 60
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
