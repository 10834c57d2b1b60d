"""Main processes with two loader workers each, for tests that end them: `python -m tests.data.loader_program FOLDER`.

One for each of WAYS, in a session of its own as torchrun starts it; what it says and its exit code are in the folder.
"""

import multiprocessing
import os
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path

import torch

from sampler import TrainBatches
from utils.data.loading import Data, Images, read_pixels, start_workers, train_loader

WAYS = "go on", "fail", "wait"


def slowly(image: torch.Tensor) -> torch.Tensor:
    time.sleep(300)
    return image


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(what: str) -> None:
    transform = slowly if what == "wait" else torch.clone
    zeros, targets = torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.zeros(64, dtype=int)
    images = Images(zeros, targets, read_pixels, transform)
    args = Namespace(workers=2, prefetch=1, batch_size=4, train_crop_size=8)
    loader = train_loader(Data(images, images, ["0"], "zeros"), args, TrainBatches(64, 4))
    start_workers(loader)
    told = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, _: told.append(number))
    batches = iter(loader)
    if what != "wait":
        next(batches), next(batches)  # one of each worker: both are at work
    say(os.getpid(), *(child.pid for child in multiprocessing.active_children()))
    if what == "fail":
        raise RuntimeError("on purpose")
    while len(told) < 3:
        time.sleep(0.01)
    say(2 + len(list(batches)))


if __name__ == "__main__":
    folder, ways = Path(sys.argv[1]), {}
    for what in WAYS:
        if not (pid := os.fork()):
            os.setsid()
            signal.alarm(300)  # however the tests end
            for number, name in ((1, "said"), (2, "errors")):
                os.dup2(os.open(folder / f"{what}.{name}", os.O_CREAT | os.O_WRONLY), number)
            main(what)
            sys.exit()
        ways[pid] = what
    while ways:
        pid, status = os.wait()
        (folder / f"{ways.pop(pid)}.code").write_text(f"{os.waitstatus_to_exitcode(status)}\n")
