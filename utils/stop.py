"""Stopping in good order: a signal to any process lets all of them finish the same step, save and exit.

SIGTERM, SIGINT and SIGUSR1 (SLURM's usual warning) ask to stop; asking again a second later quits at once.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from utils.processes import TIMEOUT, world_size

SIGNALS = {signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGINT)}  # Windows has no SIGUSR1
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "try again", here with --resume auto
# Ctrl-C reaches a process both from the terminal and from torchrun; that is still one wish to stop.
ECHO_SECONDS = 1.0


def exit_code() -> int:
    """Of a run that was asked to stop and has saved.

    75, but 0 under `torchrun --max-restarts`, which takes anything else for a failure and starts the run again.
    """
    return 0 if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 else EXIT_CODE


class StopRequest:
    """Whether to stop, answered the same in every process at the same step, without waiting for any.

    `poll` starts a small CPU all-reduce that runs beside the next step, and returns the answer of the one before.
    """

    def __init__(self) -> None:
        self.time = 0.0  # of the first signal to this process
        self.answer = False
        # A group of its own: this all-reduce must not wait in line behind the gradients.
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT) if world_size() > 1 else None
        self.pending: tuple[dist.Work, torch.Tensor] | None = None

    def poll(self) -> bool:
        """Call once a step, in every process."""
        if self.group is None:
            self.answer = self.time > 0
            return self.answer
        if self.pending:
            work, wishes = self.pending
            work.wait()
            self.answer = wishes.item() > 0
        wishes = torch.tensor([int(self.time > 0)])
        self.pending = dist.all_reduce(wishes, group=self.group, async_op=True), wishes
        return self.answer

    def _handle(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self.time and now - self.time > ECHO_SECONDS:
            sys.exit(128 + number)
        self.time = self.time or now  # and nothing more: a handler may interrupt anything, printing included

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the signals ask to stop."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
