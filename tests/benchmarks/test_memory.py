"""Whether a CPU run's memory stays with it: page faults of a process that allocates and frees."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys, torch
from utils import memory
if sys.argv[1] == "keep":
    memory.keep_freed()
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**24) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told anything")
def test_freed_memory_is_used_again_without_asking_the_system():
    faults = {}
    for how in ("keep", "give back"):
        command = [sys.executable, "-c", PROGRAM, how]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["keep"] < 100
    assert faults["give back"] > 10 * faults["keep"]
