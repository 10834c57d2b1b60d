"""`--predict`: the likeliest classes of images that a user names, by one or several sub-networks."""

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from presets import decode_pil
from utils.data.loading import Batch, Data, Images, read_file
from utils.errors import UserError
from utils.evaluate.accuracy import logits_of, running
from utils.processes import is_main

log = logging.getLogger(__name__)

LIKELIEST = 5


def images_at(path: Path, classes: list[str], transform: Callable) -> Data:
    """The image at `path`, or those below a folder, in order; a target is its image's number."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    folder, files = path.parent, [path]
    if path.is_dir():
        folder, files = path, sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise UserError(f"{path}: no images in this folder ({' '.join(IMG_EXTENSIONS)})")
    names = np.array([bytes(file.relative_to(folder)) for file in files])
    images = Images(names, np.arange(len(files)), partial(read_file, decode_pil), transform, folder)
    return Data(None, images, classes, str(path))


def predict(
    model: nn.Module,
    data: Data,
    batches: Iterable[Batch],
    subnets: Sequence[Hashable],
    autocast: Callable,
    strict: bool,
) -> None:
    """Say the likeliest classes of each image of the `batches`; one process does it. `strict`: all must be readable."""
    if not is_main():
        return
    with running(model, autocast):
        for batch in batches:
            for problem in batch.corrupt:
                if strict:
                    raise UserError(
                        f"cannot read {problem}: give a JPEG or PNG file, or leave it out: --on-corrupt skip"
                    )
                log.warning("left out: %s", problem)
            if len(batch.targets) == 0:
                continue
            lines = [str(Path(data.val.path(number))) for number in batch.targets.tolist()]
            for subnet, logits in zip(subnets, logits_of(model, batch.images, subnets), strict=True):
                best = logits.softmax(1).topk(min(LIKELIEST, len(data.classes)))
                for row, (chances, indices) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                    found = [f"{100 * p:.1f} % {data.classes[i]}" for p, i in zip(chances, indices, strict=True)]
                    lines[row] += f"\n  {model.name(subnet)}  {', '.join(found)}"
            log.info("%s", "\n".join(lines))
