"""Really starting the command: in one process, or in several, by torchrun or without it."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# One thread a process: the machine has few cores, and sums are then taken in one order.
WITH_GPUS = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ENVIRONMENT = {**WITH_GPUS, "CUDA_VISIBLE_DEVICES": ""}


def command(*arguments: object, processes: int = 1) -> list[str]:
    """The command line that runs a script of the project."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, *map(str, arguments)]


def launch(*arguments: object, processes: int = 1, timeout: float = 600, **kwargs) -> subprocess.CompletedProcess:
    """Run a script of the project to its end."""
    kwargs.setdefault("env", ENVIRONMENT)
    line = command(*arguments, processes=processes)
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout, **kwargs)


def together(
    *arguments: object, processes: int, timeout: float = 600, env: dict = ENVIRONMENT
) -> subprocess.CompletedProcess:
    """The same in several processes without torchrun, whose own start takes as long as that of one of them.

    They meet at a file, so that no port has to be free: `--dist-url` with its address follows the arguments.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        line = command(*arguments, "--dist-url", f"file://{folder}/meeting")
        outputs = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)] for _ in range(processes)]
        started = []
        for rank, (out, err) in enumerate(outputs):
            own = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            started.append(subprocess.Popen(line, cwd=ROOT, env=own, stdout=out, stderr=err))
            stack.callback(started[-1].wait)
            stack.callback(started[-1].kill)
        code = max(process.wait(timeout) for process in started)
        for file in (file for pair in outputs for file in pair):
            file.seek(0)
        out, err = ("".join(file.read() for file in files) for files in zip(*outputs, strict=True))
        return subprocess.CompletedProcess(line, code, out, err)
