"""Really starting the command: in one process, or in several by torchrun."""

import os
import subprocess
import sys
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


def launch(*arguments: object, processes: int = 1, timeout: float = 240, **kwargs) -> subprocess.CompletedProcess:
    """Run a script of the project to its end."""
    kwargs.setdefault("env", ENVIRONMENT)
    line = command(*arguments, processes=processes)
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout, **kwargs)
