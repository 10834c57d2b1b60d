"""A main process with two loader workers, for tests that end it: `python -m tests.data.loader_program WHAT`."""

import multiprocessing
import signal
import sys
import time
from argparse import Namespace

import torch

from sampler import TrainBatches
from utils.data.loading import Data, Images, read_pixels, start_workers, train_loader


def slowly(image: torch.Tensor) -> torch.Tensor:
    time.sleep(60)
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
    say(*(child.pid for child in multiprocessing.active_children()))
    if what == "fail":
        raise RuntimeError("on purpose")
    while len(told) < 3:
        time.sleep(0.01)
    say(2 + len(list(batches)))


if __name__ == "__main__":
    main(sys.argv[1])
