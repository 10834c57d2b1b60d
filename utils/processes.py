"""Several processes as one run: how they find each other, agree, and end. In a single process all of it does nothing.

`connect` finds the other processes by what the launcher (torchrun or SLURM) says and opens a store that all share; it
starts no CUDA, NCCL or gloo thread, so that workers of data loaders can be forked after it. `join` takes this process's
device and makes the process group. A run that went well calls `leave`. One that failed waits for nobody: `run`, which
starts the command, tells the others and ends the process at once.
"""

import contextlib
import multiprocessing
import os
import platform
import re
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
SECONDS_BETWEEN_LOOKS = 2.0  # at whether another process has failed
FAILED = "failed"  # the store's key that tells of it


@dataclass
class _Connection:
    """This process among those of the run. A single process has no stores."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine
    store: dist.Store | None = None
    news: dist.Store | None = None  # the same by a connection of its own: torch holds the first one while it waits
    leaving: threading.Event = field(default_factory=threading.Event)


_here = _Connection()


def rank() -> int:
    return _here.rank


def world_size() -> int:
    return _here.world_size


def local_rank() -> int:
    return _here.local_rank


def is_main() -> bool:
    return _here.rank == 0


def connect(dist_url: str = "env://", expected: int = 1) -> None:
    """Find the other processes that torchrun or a SLURM step started, if any, and open the store that all share."""
    global _here
    number, size, local = _launched()
    _here = _Connection(number, size, local)
    if size == 1 and dist_url != "env://":
        raise UserError(f"--dist-url {dist_url} has no effect in one process: start with torchrun or srun")
    if size > 1:
        url = dist_url
        if url == "env://" and "MASTER_ADDR" not in os.environ:  # a SLURM step: its first machine, the job's own port
            first = re.sub(r"\[(\w+).*", r"\1", os.environ["SLURM_STEP_NODELIST"]).split(",")[0]
            url = f"tcp://{first}:{20000 + int(os.environ['SLURM_JOB_ID']) % 20000}"
        try:
            store, _, _ = next(dist.rendezvous(url, rank=number, world_size=size, timeout=TIMEOUT))
            name, news = _name_of_this_start(store), store
            if isinstance(store, dist.TCPStore):
                news = dist.TCPStore(store.host, store.port, is_master=False, wait_for_workers=False, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:  # torch's, of addresses, ports, processes that did not come
            raise UserError(f"the {size} processes cannot meet at {url}: {error}") from None
        _here.store, _here.news = dist.PrefixStore(name, store), dist.PrefixStore(name, news)
    if expected not in (1, size):
        raise UserError(f"--world-size {expected}, but the launcher started {size} process(es): leave the flag out")


def join(device: torch.device) -> torch.device:
    """Take this process's own device and make the process group. Returns the device, a GPU with its number."""
    if _here.store:
        threading.Thread(target=_end_when_another_fails, args=(_here,), daemon=True).start()
    if device.type == "cuda":
        visible, index = torch.cuda.device_count(), device.index or 0
        if world_size() > 1:
            index = local_rank() % visible  # SLURM may show each task only its own GPU, which is then number 0
            if _here.store.add(f"GPU {torch.cuda.get_device_properties(index).uuid}", 1) > 1:
                raise UserError(
                    f"two processes of a machine would share a GPU ({visible} visible): start as many processes per "
                    "machine as it has GPUs"
                )
        torch.cuda.set_device(index)
        device = torch.device("cuda", index)
    if _here.store:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        size = {"rank": rank(), "world_size": world_size()}
        try:
            dist.init_process_group(backend, store=_here.store, timeout=TIMEOUT, **size)
        except RuntimeError as error:
            if another_failed():
                raise
            problem = f"the processes cannot reach each other ({str(error).splitlines()[0]})"
            way_out = "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface that they share"
            raise UserError(f"{problem}: {way_out}") from None
    return device


def _end_when_another_fails(here: _Connection) -> None:
    """In a thread: this process may wait for the other on a GPU, where neither Python nor a signal reaches it."""
    while not here.leaving.wait(SECONDS_BETWEEN_LOOKS):
        if another_failed():
            _end_at_once(1)  # not 2: SLURM tells the highest code of all, and this is no mistake of the call


def _end_at_once(code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody reads what was said
        sys.stdout.flush()
        sys.stderr.flush()
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


def leave() -> None:
    """Part after a run that went well. Not after an error: torch would wait for what the others never finish."""
    if dist.is_initialized():
        if _here.store.add("at the end", 1) == world_size():
            _here.store.set("all at the end", "")
        _here.store.wait(["all at the end"], TIMEOUT)  # from now on the store may go, with the main process
    _here.leaving.set()
    if dist.is_initialized():
        # gloo's threads let go of the last tensors, which takes Python's lock; destroying holds it and waits for them.
        time.sleep(0.1)
        dist.destroy_process_group()


def run(command: Callable[[], int]) -> NoReturn:
    """Run the command and end this process with its exit code; at once, unless it left in good order.

    Python's usual exit would wait for kernels whose partners never come and for loader workers, which ignore SIGTERM.
    """
    try:
        code = command()
    except SystemExit as ending:
        code = int(ending.code or 0)
    except BaseException:  # whatever it is: it is shown, and the process ends
        traceback.print_exc()
        code = 1
    if _here.leaving.is_set():
        sys.exit(code)
    if _here.store and not another_failed():
        _here.store.set(FAILED, "")
    _end_at_once(code)


def already_reported(mistake: str) -> bool:
    """Whether another process has reported this mistake, which all may make together. If not, this one should."""
    try:
        return _here.store is not None and _here.store.add(f"reported {mistake}", 1) > 1
    except RuntimeError:  # the store is gone with the main process: that was reported
        return True


def another_failed() -> bool:
    """Whether another process has ended by an error: that this one has lost its partner is then no news."""
    try:
        return _here.news is not None and _here.news.check([FAILED])
    except RuntimeError:  # the store is gone with the main process
        return True


def launch() -> str:
    """What launched this run, by a name that stays when it starts the run again; empty without a launcher."""
    env = os.environ
    if "SLURM_JOB_ID" in env:
        return f"SLURM job {env['SLURM_JOB_ID']}"
    if "TORCHELASTIC_RUN_ID" not in env:
        return ""
    if (name := env["TORCHELASTIC_RUN_ID"]) != "none":  # one that the user gave, or that --standalone has drawn
        return f"torchrun {name}"
    if env.get("LOCAL_WORLD_SIZE") == env.get("WORLD_SIZE"):  # on one machine it is this process's parent
        status = Path(f"/proc/{os.getppid()}/stat")
        since = status.read_text().rpartition(")")[2].split()[19] if status.exists() else ""
        return f"torchrun {platform.node()} {os.getppid()} {since}"
    return f"torchrun {env['MASTER_ADDR']}:{env['MASTER_PORT']}"


def gather_objects(value: T) -> list[T]:
    """Every process's `value`."""
    gathered = [value]
    if world_size() > 1:
        gathered = [None] * world_size()
        dist.all_gather_object(gathered, value)
    return gathered


def restarted() -> bool:
    """Whether torchrun (--max-restarts) or SLURM (requeue) started this run again, on whichever machine."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return largest(max(int(os.environ.get(name, "0")) for name in names)) > 0


def _launched() -> tuple[int, int, int]:
    """(rank, world size, rank on this machine) by the environment of torchrun, else of a SLURM step, else (0, 1, 0)."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0"))
    # A batch script or an interactive allocation has SLURM_PROCID too; only srun sets the step's number of tasks.
    if "SLURM_STEP_NUM_TASKS" in env:
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return 0, 1, 0


def _name_of_this_start(store: dist.Store) -> str:
    """A name for this start of the processes, under which the store holds nothing of an earlier one.

    torchrun keeps its store over restarts, with the addresses of dead processes, and counts restarts on each machine
    for itself. So the main process draws a name and answers those who ask under it; under an old name nobody answers.
    """
    own = uuid.uuid4().hex
    if is_main():
        store.set("start", own)
        for other in range(1, world_size()):
            store.set(store.get(f"{own} asked by {other}").decode(), "")
        return own
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while True:
        name = store.get("start").decode()
        store.set(f"{name} asked by {rank()}", own)
        try:
            store.wait([own], timedelta(seconds=1))
            return name
        except RuntimeError:  # no answer yet
            if time.monotonic() > deadline:
                raise


def on_main(function: Callable[[], T]) -> T:
    """What `function` gives in the main process, in every process; also what goes wrong there (UserError)."""
    result, problem = None, None
    if is_main():
        try:
            result = function()
        except UserError as error:
            problem = str(error)
    result, problem = from_main((result, problem))
    if problem:
        raise UserError(problem)
    return result


def from_main(value: T) -> T:
    """The main process's `value`, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of all processes' `values`, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather(values: Tensor) -> Tensor:
    """Every process's `values`, stacked."""
    if world_size() == 1:
        return values[None]
    rows = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(rows, values)
    return torch.stack(rows)


def largest(value: int) -> int:
    """The largest of all processes' `value`s, in every process."""
    if world_size() == 1:
        return value
    box = torch.tensor(int(value))
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the main process's values of `tensors`, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)
