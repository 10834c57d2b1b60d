"""`--predict`: the likeliest classes of images that a user names, by one or several sub-networks."""

import logging
from argparse import Namespace
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

import presets
from utils.data.loading import Batch
from utils.errors import UserError
from utils.evaluate.accuracy import eval_mode, forward
from utils.evaluate.report import Subject
from utils.processes import is_main

log = logging.getLogger(__name__)

LIKELIEST = 5


def run_predict(subject: Subject, subnets: Sequence[Hashable], classes: Sequence[str], args: Namespace) -> None:
    """Say the likeliest classes of the image `args.predict`, or of every image in that folder."""
    files = images_at(Path(args.predict))
    transform = presets.eval_transform(args.val_resize_size, args.val_crop_size, args.interpolation)
    if not is_main():
        return
    with eval_mode(subject.model), torch.inference_mode():
        for names, images in _batches(files, transform, args):
            images, _ = subject.prepare(Batch(images, torch.zeros(len(images), dtype=torch.int64), []))
            with subject.autocast():
                logits = forward(subject.model, images, subnets)
            chances = {subject.name(subnet): logits[subnet].float().softmax(1).cpu() for subnet in subnets}
            for number, name in enumerate(names):
                lines = [f"  {subnet}  {_likeliest(rows[number], classes)}" for subnet, rows in chances.items()]
                log.info("%s\n%s", name, "\n".join(lines))


def images_at(path: Path) -> list[Path]:
    """The image itself, or those below a folder, in order."""
    if not path.exists():
        raise UserError(f"--predict {path}: no such file or folder")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise UserError(f"--predict {path}: no images in this folder ({' '.join(IMG_EXTENSIONS)})")
    return files


def _batches(files: Sequence[Path], transform: Callable, args: Namespace) -> Iterator[tuple[list[Path], Tensor]]:
    """Readable images, --batch-size at a time, with their paths."""
    for start in range(0, len(files), args.batch_size):
        names, images = [], []
        for file in files[start : start + args.batch_size]:
            try:
                images.append(presets.load_image(str(file), transform))
                names.append(file)
            except UserError as error:
                if args.on_corrupt == "error":
                    raise
                log.warning("left out: %s", error)
        if images:
            yield names, torch.stack(images)


def _likeliest(chances: Tensor, classes: Sequence[str]) -> str:
    values, indices = chances.topk(min(LIKELIEST, len(chances)))
    return ", ".join(f"{100 * p:.1f} % {classes[i]}" for p, i in zip(values.tolist(), indices.tolist(), strict=True))
