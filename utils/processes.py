"""Several processes as one run: how they find each other, agree and average their gradients.

Everything works in a single process too, where it does nothing. Gradients are reduced by `GradientReducer` instead of
DistributedDataParallel; its docstring says why.
"""

import atexit
import os
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
FAILED = "failed"  # key in the processes' common store


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def start(device: torch.device, dist_url: str = "env://", expected: int = 1) -> torch.device:
    """Join the other processes that torchrun or a SLURM step started, if any; returns this process's own device."""
    number, size, local = _launched()
    if expected not in (1, size):
        raise UserError(f"--world-size {expected}, but the launcher started {size} process(es): leave the flag out")
    if device.type == "cuda":
        device = _own_gpu(device, local, size)
    if size == 1:
        if dist_url != "env://":
            raise UserError(f"--dist-url {dist_url} has no effect in one process: start with torchrun or srun")
        if "RANK" not in os.environ:
            return device
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    url = dist_url if dist_url != "env://" or "MASTER_ADDR" in os.environ else _slurm_url()
    store, _, _ = next(dist.rendezvous(url, rank=number, world_size=size, timeout=TIMEOUT))
    dist.init_process_group(backend, store=_of_this_start(store), world_size=size, rank=number, timeout=TIMEOUT)
    atexit.register(stop)
    return device


def _of_this_start(store: dist.Store) -> dist.Store:
    """torchrun keeps one store over its restarts: the addresses of the processes that died must not be found in it."""
    env = os.environ
    if env.get("LOCAL_WORLD_SIZE") != env.get("WORLD_SIZE"):  # machines count their restarts each for itself
        return store
    return dist.PrefixStore(f"start_{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def stop() -> None:
    """Leave the group, so that the others are not told of a lost process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun (--max-restarts) or SLURM (requeue) started this run again."""
    return any(int(os.environ.get(name, "0")) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _launched() -> tuple[int, int, int]:
    """(rank, world size, rank on this machine) by the environment of torchrun, else of a SLURM step, else (0, 1, 0)."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0"))
    # A batch script or an interactive allocation has SLURM_PROCID too; only srun sets the step's number of tasks.
    if "SLURM_STEP_NUM_TASKS" in env:
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return 0, 1, 0


def _slurm_url() -> str:
    """The first machine of the step, at a port that follows from the job's number."""
    first = re.sub(r"\[(\w+).*", r"\1", os.environ["SLURM_STEP_NODELIST"]).split(",")[0]
    return f"tcp://{first}:{20000 + int(os.environ['SLURM_JOB_ID']) % 20000}"


def _own_gpu(device: torch.device, local: int, size: int) -> torch.device:
    if size > 1:
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local + 1} of this machine has no GPU of its own ({torch.cuda.device_count()} visible): "
                "start as many processes per machine as it has GPUs"
            )
        # SLURM may show each task only its own GPU, which is then number 0.
        device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def on_main(function: Callable[[], T]) -> T | None:
    """Run `function` in the main process. What goes wrong there (UserError) is raised in every process."""
    result, problem = None, None
    if is_main():
        try:
            result = function()
        except UserError as error:
            problem = str(error)
    problem = from_main(problem)
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


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the main process's values of `tensors`, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def broadcast_buffers(model: nn.Module) -> None:
    """Evaluation and checkpoints use the main process's running statistics, as with DistributedDataParallel."""
    broadcast(model.buffers())


def first_to_say(message: str) -> bool:
    """Whether no other process has said `message` yet, so that an error of all processes appears once."""
    if world_size() == 1:
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(FAILED, message)
        return store.add(f"said:{message}", 1) == 1
    except RuntimeError:  # the store went with the process that kept it
        return True


def another_failed() -> bool:
    """Whether another process has ended with an error it told of: then a lost connection is no news."""
    try:
        return world_size() > 1 and dist.distributed_c10d._get_default_store().check([FAILED])
    except RuntimeError:
        return False
