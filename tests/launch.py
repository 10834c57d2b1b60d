"""Really starting the command: in one process, or in several, by torchrun or without it."""

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


# One process imports what takes seconds and parts into as many as are asked for, each of which then runs the script.
PARTING = """
import gc, os, runpy, signal, sys
import train_adn
gc.freeze()  # what is shared stays so: no collection touches it
seconds, count, *sys.argv = sys.argv[1:]
signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
signal.alarm(int(seconds))
for rank in range(int(count)):
    if not os.fork():
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count}
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
sys.exit(max(abs(os.waitstatus_to_exitcode(os.wait()[1])) for _ in range(int(count))))
"""


def parting(*arguments: object, processes: int, meeting: Path, seconds: int = 600) -> list[str]:
    """The command line that runs a script in several processes without torchrun; to be begun in a session of its own.

    They meet at a file, so that no port has to be free: `--dist-url` with its address follows the arguments.
    """
    line = (sys.executable, "-c", PARTING, seconds, processes, *arguments, "--dist-url", f"file://{meeting}")
    return list(map(str, line))


def together(*arguments: object, processes: int, env: dict = ENVIRONMENT) -> subprocess.CompletedProcess:
    """Run a script so to its end: the start of torchrun takes as long as that of a process."""
    with tempfile.TemporaryDirectory() as folder:
        line = parting(*arguments, processes=processes, meeting=Path(folder, "meeting"))
        return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, start_new_session=True)
