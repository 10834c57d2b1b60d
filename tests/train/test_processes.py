"""Several processes find each other, agree, and end together, whoever launches them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from tests.launch import ENVIRONMENT, ROOT, launch
from utils import processes
from utils.errors import UserError

WORKER = "tests/train/process_worker.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def start(line: list[object], **environment: object) -> subprocess.Popen:
    environment = {**ENVIRONMENT, **{name: str(value) for name, value in environment.items()}}
    return subprocess.Popen(
        [*map(str, line)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(started: list[subprocess.Popen], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; the time is only there to end a test that fails."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in started]
        return [(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]
    finally:
        for process in started:
            process.kill()


def slurm_tasks(*arguments: object, each: tuple[dict, dict] = ({}, {})) -> list[tuple[int, str, str]]:
    """Two tasks as srun starts them, which ends none when the other fails; `each`: their own variables."""
    step = {"SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": free_port() - 20000}
    if step["SLURM_JOB_ID"] not in range(20000):
        step |= {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    tasks = [{**step, "SLURM_PROCID": number, "SLURM_LOCALID": number, **each[number]} for number in range(2)]
    return ended([start([sys.executable, *arguments], **task) for task in tasks])


def said(*outputs: str) -> dict[int, object]:
    lines = [json.loads(line) for output in outputs for line in output.splitlines() if line.startswith('{"rank"')]
    return {line["rank"]: line["said"] for line in lines}


def test_all_processes_agree_on_whether_they_were_started_again():
    """torchrun counts restarts on each machine for itself."""
    results = slurm_tasks(WORKER, "agree", each=({}, {"TORCHELASTIC_RESTART_COUNT": 2}))
    assert [code for code, *_ in results] == [0, 0], results
    assert said(*(stdout for _, stdout, _ in results)) == {0: [2, 0, True], 1: [2, 1, True]}


@pytest.fixture
def gpus(monkeypatch):
    """As many GPUs as there are UUIDs in the list."""
    uuids: list[str] = ["A", "B"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index]))
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: monkeypatch.setattr(torch.cuda, "chosen", index, False))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    return uuids


def joined(monkeypatch, store: torch.distributed.Store, local: int) -> torch.device:
    """The device of the second of two processes, or the first."""
    monkeypatch.setattr(processes, "_here", processes._Connection(local, 2, local, store, store))
    try:
        device = processes.join(torch.device("cuda"))
    finally:
        processes.leave()
    assert torch.cuda.chosen == device.index
    return device


@pytest.mark.parametrize(("asked", "given"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_one_process_on_a_gpu_gives_it_a_number(monkeypatch, gpus, asked, given):
    processes.connect()
    assert processes.join(torch.device(asked)) == torch.device(given)
    assert torch.cuda.chosen == int(given[-1])


@pytest.mark.parametrize(
    ("visible", "given"),
    [("AB AB", [0, 1]), ("A B", [0, 0]), ("AB CD", [0, 1])],
    ids=["all visible", "gpus-per-task=1", "gpus-per-task=2"],
)
def test_each_process_takes_a_gpu_of_its_own(monkeypatch, gpus, visible, given):
    store = torch.distributed.HashStore()
    for local, uuids in enumerate(visible.split()):
        gpus[:] = uuids
        assert joined(monkeypatch, store, local).index == given[local]


def test_two_processes_for_one_gpu_are_a_mistake(monkeypatch, gpus):
    gpus[:] = "A"
    store = torch.distributed.HashStore()
    joined(monkeypatch, store, 0)
    with pytest.raises(UserError, match="as many processes per machine as it has GPUs"):
        joined(monkeypatch, store, 1)


def test_processes_that_cannot_meet_say_where(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="cannot meet at nonesuch://here"):
        processes.connect("nonesuch://here")
    monkeypatch.undo()
    processes.connect()


def test_one_process_that_fails_ends_a_run_of_torchrun():
    done = launch(WORKER, "fail", processes=2, timeout=60)
    assert done.returncode != 0
    assert done.stderr.count("code = command()") == 1  # in the traceback of one process
    assert "KeyError: 'a bug'" in done.stderr


def test_one_process_that_fails_ends_the_others_without_a_launchers_help():
    (partner, _, silence), (code, _, trace) = slurm_tasks(WORKER, "fail_unnoticed")
    assert (code, partner) == (1, 1)
    assert "KeyError: 'a bug'" in trace
    assert "Traceback" not in silence


def test_a_bug_ends_a_process_whose_loader_workers_ignore_signals():
    done = launch(WORKER, "fail_amid_loading", timeout=60)
    assert done.returncode == 1
    assert "KeyError: 'a bug'" in done.stderr


def test_without_torchrun_too_a_mistake_is_reported_once(tmp_path):
    results = slurm_tasks("train_adn.py", "--data-path", tmp_path / "nonesuch", "--output-dir", tmp_path)
    assert [code for code, *_ in results] == [2, 2]
    assert sum(stderr.count("train_adn.py: error") for *_, stderr in results) == 1


def torchrun(*arguments: object) -> list[object]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def test_two_machines_meet_again_after_one_has_lost_a_process(tmp_path):
    """Two launchers on this one. Only one of them counts a restart; their store still knows the dead processes."""
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d"]
    meeting.append(f"--rdzv-endpoint=localhost:{free_port()}")
    results = ended([start(torchrun(*meeting, WORKER, "lose_a_process", tmp_path)) for _ in range(2)])
    assert [code for code, *_ in results] == [0, 0], results
    found = said(*(stdout for _, stdout, _ in results))  # the last word of each
    assert {(tuple(numbers), again) for numbers, _, again in found.values()} == {((0, 1), True)}
    assert sorted(count for _, count, _ in found.values()) == ["0", "1"]
    assert len(list(tmp_path.iterdir())) == 4
    assert len({started.read_text() for started in tmp_path.iterdir()}) == 1  # the launch keeps its name


def test_a_run_asked_to_stop_is_not_started_again_and_connecting_starts_no_thread(tmp_path):
    """The signal reached a process and not its launcher, as it may with several machines.

    Without threads, loader workers can be forked.
    """
    launcher = start(torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=2", WORKER, "stop", tmp_path))
    while len(list(tmp_path.iterdir())) < 2 and launcher.poll() is None:
        time.sleep(0.05)
    os.kill(int(next(tmp_path.glob("0.*")).suffix[1:]), signal.SIGTERM)
    ((code, stdout, stderr),) = ended([launcher])
    assert code == 0, stderr
    assert len(list(tmp_path.iterdir())) == 2
    assert said(stdout) == {0: [0, False], 1: [0, False]}
