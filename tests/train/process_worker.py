"""Started in several processes by test_processes.py: does what its first argument says, as the command would."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from utils import processes
from utils.stop import StopRequest, exit_code


def say(what: object) -> None:
    sys.stdout.write(json.dumps({"rank": processes.rank(), "said": what}) + "\n")  # in one piece


def agree() -> int:
    """What the processes know after `connect`, and whether all find that they were started again."""
    processes.connect()
    before_join = [processes.world_size(), processes.local_rank()]
    processes.join(torch.device("cpu"))
    say([*before_join, processes.restarted()])
    processes.leave()
    return 0


def fail() -> int:
    """The last process has a bug, while the other waits for it in a collective."""
    processes.connect()
    processes.join(torch.device("cpu"))
    processes.largest(0)
    if processes.rank() == processes.world_size() - 1:
        raise KeyError("a bug")
    try:
        processes.largest(0)
    except RuntimeError:
        if not processes.another_failed():
            raise
    return 2


def fail_unnoticed() -> int:
    """The same, where the other waits as one does on a GPU: the collective never ends."""
    processes.largest = lambda _: processes.is_main() and time.sleep(300)
    return fail()


def lose_a_process(folder: str) -> int:
    """At the first start one process is killed, and the other notices nothing."""
    started = Path(folder, f"{os.environ['RANK']}.{time.time()}")
    started.write_text(processes.launch())
    processes.connect()
    processes.join(torch.device("cpu"))
    numbers = processes.gather(torch.tensor([processes.rank()])).flatten().tolist()
    say([numbers, os.environ["TORCHELASTIC_RESTART_COUNT"], processes.restarted()])
    if not processes.restarted():
        if processes.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(300)
    processes.leave()
    return 0


def stop(folder: str) -> int:
    """Runs until somebody says stop. Tells how many threads `connect` started."""
    threads = len(os.listdir("/proc/self/task"))
    processes.connect()
    threads = len(os.listdir("/proc/self/task")) - threads
    processes.join(torch.device("cpu"))
    say([threads, processes.restarted()])
    stop = StopRequest()
    with stop.listening():
        Path(folder, f"{processes.rank()}.{os.getpid()}").touch()
        while not stop.poll():
            time.sleep(0.05)
    processes.leave()
    return exit_code()


def fail_amid_loading() -> int:
    """A bug while loader workers, which ignore SIGTERM, wait for work."""

    def ignore_the_signal(_worker: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    workers = {"num_workers": 2, "persistent_workers": True, "worker_init_fn": ignore_the_signal}
    for _batch in DataLoader(range(100), multiprocessing_context="fork", **workers):
        raise KeyError("a bug")
    return 0


if __name__ == "__main__":
    processes.run(lambda: globals()[sys.argv[1]](*sys.argv[2:]))
