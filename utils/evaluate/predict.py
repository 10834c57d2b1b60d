"""`--predict`: the likeliest classes of images that a user names, by one or several sub-networks."""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from presets import load_image
from utils.data.loading import Batch
from utils.errors import UserError
from utils.evaluate.accuracy import logits_of, running
from utils.processes import is_main

log = logging.getLogger(__name__)

LIKELIEST = 5


class Images:
    """The image at `path`, or those below a folder, in order and in batches; a target is its image's number."""

    def __init__(self, path: Path, transform: Callable, batch_size: int, on_corrupt: str = "error") -> None:
        if not path.exists():
            raise UserError(f"--predict {path}: no such file or folder")
        self.files = [path]
        if path.is_dir():
            self.files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
        if not self.files:
            raise UserError(f"--predict {path}: no images in this folder ({' '.join(IMG_EXTENSIONS)})")
        self.transform, self.batch_size, self.on_corrupt = transform, batch_size, on_corrupt

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.files), self.batch_size):
            numbers, images = [], []
            for number, file in enumerate(self.files[start : start + self.batch_size], start):
                try:
                    images.append(load_image(str(file), self.transform))
                    numbers.append(number)
                except UserError as error:
                    if self.on_corrupt == "error":
                        raise
                    log.warning("left out: %s", error)
            if images:
                yield Batch(torch.stack(images), torch.tensor(numbers), [])


def predict(
    model: nn.Module,
    images: Images,
    classes: Sequence[str],
    subnets: Sequence[Hashable],
    on_device: Callable,
    autocast: Callable,
) -> None:
    """Say the likeliest classes of each image; one process does it."""
    if not is_main():
        return
    with running(model, autocast):
        for batch in on_device(images):
            lines = [str(images.files[number]) for number in batch.targets]
            for subnet, logits in zip(subnets, logits_of(model, batch.images, subnets), strict=True):
                best = logits.softmax(1).topk(min(LIKELIEST, len(classes)))
                for row, (chances, indices) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                    found = [f"{100 * p:.1f} % {classes[i]}" for p, i in zip(chances, indices, strict=True)]
                    lines[row] += f"\n  {model.name(subnet)}  {', '.join(found)}"
            for line in lines:
                log.info("%s", line)
