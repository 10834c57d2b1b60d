"""`--save-predictions`: every image's logits in a file, and what they say of each class.

`evaluate` hands over each batch's logits. Which images they belong to follows from the shares of the processes, which
are taken in turns, and from the names of the files that could not be read.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.data.loading import Images
from utils.evaluate import picture
from utils.files import whole_file, write_csv
from utils.processes import is_main, on_main, rank, sum_over_processes, world_size

log = logging.getLogger(__name__)


class Predictions:
    """The logits of all `images` by the sub-networks of these `names`."""

    def __init__(self, images: Images, classes: Sequence[str], names: Sequence[str]):
        self.images, self.classes, self.names = images, classes, names
        self.batches: list[Tensor] = []  # sub-networks x images x classes

    def add(self, logits: Sequence[Tensor]) -> None:
        """A batch's, one tensor for each sub-network. Waits for the device."""
        self.batches.append(torch.stack(list(logits)).cpu())

    def write(self, corrupt: Sequence[str], folder: Path, draw: bool) -> None:
        """Call it in every process, when all batches have been added; `corrupt` are those left out of them."""
        count, paths = len(self.images), map(self.images.path, range(len(self.images)))
        lost = [bool(corrupt) and any(line.startswith(f"{path} (") for line in corrupt) for path in paths]
        kept = np.flatnonzero(~np.array(lost))
        mine = torch.from_numpy(kept[kept % world_size() == rank()])
        logits = {}
        for row, name in enumerate(self.names):
            whole = torch.zeros(count, len(self.classes))
            if self.batches:
                whole[mine] = torch.cat([batch[row] for batch in self.batches])
            sum_over_processes(whole)  # to each row all others add 0
            if is_main():
                logits[name] = whole[kept].numpy()
        on_main(lambda: self._write(kept, logits, folder, draw))

    def _write(self, kept: np.ndarray, logits: dict[str, np.ndarray], folder: Path, draw: bool) -> None:
        labels, count = np.asarray(self.images.targets, np.int64)[kept], len(self.classes)
        names = np.array([self.images.name(number) for number in kept])
        arrays = {"names": names, "labels": labels, "classes": np.array(self.classes)}
        written = [folder / "predictions.npz", folder / "per_class.csv"]
        with whole_file(written[0]) as file:
            np.savez(file, **arrays, **{f"logits_{name}": values for name, values in logits.items()})
        said = {name: values.argmax(axis=1) for name, values in logits.items()}
        images = np.bincount(labels, minlength=count)
        right = (np.bincount(labels[best == labels], minlength=count) for best in said.values())
        columns = [np.where(images > 0, 100 * hits / images.clip(1), "") for hits in right]
        header = ["class", "images", *(f"Acc@1 {name}" for name in self.names)]
        write_csv(written[1], header, zip(self.classes, images, *columns, strict=True))
        first, path = self.names[0], folder / f"confusion_{self.names[0]}.png"
        matrix = np.bincount(labels * count + said[first], minlength=count**2).reshape(count, count)
        if draw and picture.confusion(100 * matrix / images.clip(1)[:, None], self.classes, f"Said by {first}", path):
            written.append(path)
        log.info("written: %s", ", ".join(map(str, written)))
