"""Memory of loader workers over time, with the file list of ImageNet: ours against a list of Python tuples.

    python -m tools.worker_memory

A forked worker shares its parent's memory until it writes to it, and looking at a Python object writes its reference
count (pytorch issue 13246). Shown is what the workers hold for themselves alone (USS) and with their part of what is
shared (PSS), after the first batches and after many more. The files do not exist: only the list is measured. Linux.
"""

import argparse
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

import presets
from sampler import TrainSampler
from utils.data.images import Corrupt, FileImages, Item
from utils.data.loading import collate

IMAGES, CLASSES = 1_281_167, 1000
BATCH = 250


def ours(images: int) -> FileImages:
    """The data set of the training command, over files that are not there."""
    targets = np.arange(images, dtype=np.int32) * CLASSES // images
    files = np.array([_name(target, number) for number, target in enumerate(targets.tolist())])
    return FileImages("/nowhere", files, targets, presets.decode_tensor, transform=presets.eval_transform())


class Tuples(Dataset):
    """As torchvision's ImageFolder keeps them: a list of (path, class)."""

    def __init__(self, images: int):
        self.samples = [
            (f"/nowhere/{_name(n * CLASSES // images, n).decode()}", n * CLASSES // images) for n in range(images)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int, int]) -> Item:
        path, _ = self.samples[key[1]]
        return Corrupt(path, "does not exist")


def _name(target: int, number: int) -> bytes:
    return b"n%08d/n%08d_%07d.JPEG" % (target, target, number)


def measure(dataset: Dataset, workers: int, looks: int) -> Iterator[tuple[float, float]]:
    """(USS, PSS) in MiB per worker: when each worker has made a batch, and after `looks` random looks at the list."""
    sampler = TrainSampler(len(dataset))
    loader = DataLoader(
        dataset, BATCH, sampler=sampler, num_workers=workers, collate_fn=collate, multiprocessing_context="fork"
    )
    for number, batch in enumerate(loader, start=1):
        assert len(batch.corrupt) == BATCH
        if number in (workers, looks // BATCH):
            yield _memory([child.pid for child in multiprocessing.active_children()])
        if number >= looks // BATCH:
            return


def _memory(pids: list[int]) -> tuple[float, float]:
    uss = pss = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            field, value = line.split()[:2]
            uss += int(value) if field in ("Private_Clean:", "Private_Dirty:") else 0
            pss += int(value) if field == "Pss:" else 0
    return uss / len(pids) / 1024, pss / len(pids) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES, help="length of the list (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=8, help="(default: %(default)s)")
    args = parser.parse_args()
    print(f"{args.images} files, {args.workers} workers, MiB per worker\n{'':10}{'USS':>8}{'':3}{'PSS':>8}")
    for name, dataset in (("arrays", ours(args.images)), ("tuples", Tuples(args.images))):
        for when, (uss, pss) in zip(("start", "later"), measure(dataset, args.workers, args.images), strict=True):
            print(f"{name} {when:5}{uss:8.1f}{pss:10.1f}")


if __name__ == "__main__":
    main()
