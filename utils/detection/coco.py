"""Data in COCO's layout: `annotations/instances_train*.json` and `…_val*.json`, and a folder of images for each.

`instances_train2017.json` is about the images in `train2017/`. What is held per object are rows of arrays, and what a
mask is made of is text until it is asked for: the workers of loaders share all of it.
"""

import json
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import presets
from sampler import Key, TrainBatches, as_key
from utils.data.loading import Batch, Corrupt, Data, read_file
from utils.detection import masks
from utils.detection.average_precision import Truth
from utils.errors import UserError
from utils.rng import derive, seeded

Target = dict[str, Tensor]
LEAST = 1.0  # pixels of a box's sides that can be learnt from
ASPECTS = 2 ** np.linspace(-1, 1, 7)  # images between two of them are batched together
read_image = partial(read_file, presets.decode_tensor)


def collate(items: Sequence[tuple[Tensor, Target] | Corrupt]) -> Batch:
    """Images keep their sizes, so a batch is lists."""
    readable = [item for item in items if not isinstance(item, Corrupt)]
    corrupt = [str(item) for item in items if isinstance(item, Corrupt)]
    return Batch([image for image, _ in readable], [target for _, target in readable], corrupt)


@dataclass(eq=False)
class Scenes(Dataset):
    """Images with their objects, by key (epoch, index, repeat); to train on, those with objects, crowds left out.

    A label is the place of its category, by number, from 1 on; 0 is the background.
    """

    folder: Path
    files: np.ndarray
    sizes: np.ndarray  # width, height
    begins: np.ndarray  # the place of each image's first object, and at the end how many objects there are
    labels: np.ndarray
    boxes: np.ndarray  # x, y, width, height
    areas: np.ndarray
    crowd: np.ndarray
    outlines: tuple[bytes, np.ndarray]  # the objects' segmentations one after the other, and where each ends
    classes: list[str]
    to_train: bool = False
    with_masks: bool = False
    hflip_prob: float = 0.0
    seed: int = 0
    collate = staticmethod(collate)

    def __post_init__(self) -> None:
        self.shown = np.arange(len(self.files))
        self.usable = ~self.crowd & (self.boxes[:, 2:] > LEAST).all(1)
        if self.to_train:
            counts = np.append(0, self.usable.cumsum())[self.begins]
            self.shown = np.flatnonzero(counts[1:] > counts[:-1])
        self.side = float(self.sizes.prod(1).max() ** 0.5)

    def __len__(self) -> int:
        return len(self.shown)

    def objects(self, index: int) -> np.ndarray:
        image = self.shown[index]
        return np.arange(self.begins[image], self.begins[image + 1])

    def masks_of(self, index: int, objects: np.ndarray) -> np.ndarray:
        text, ends = self.outlines
        width, height = self.sizes[self.shown[index]]
        own = [json.loads(text[ends[one - 1] if one else 0 : ends[one]]) for one in objects]
        return np.array([masks.decode(outline, height, width) for outline in own], np.uint8).reshape(-1, height, width)

    def truth(self, index: int) -> Truth:
        """What an evaluation is to know of an image, crowds too."""
        rows = self.objects(index)
        arrays = [array[rows] for array in (self.labels, self.boxes, self.areas, self.crowd)]
        return Truth(*arrays, self.masks_of(index, rows) if self.with_masks else None)

    def __getitem__(self, key: Key | int) -> tuple[Tensor, Target] | Corrupt:
        epoch, index, repeat = as_key(key)
        image = read_image(str(self.folder / os.fsdecode(self.files[self.shown[index]])))
        if isinstance(image, Corrupt):
            return image
        target = {"index": torch.tensor(index)}
        if not self.to_train:
            return image, target
        rows = self.objects(index)
        rows = rows[self.usable[rows]]
        boxes = torch.from_numpy(self.boxes[rows]).float()
        boxes[:, 2:] += boxes[:, :2]
        target |= {"boxes": boxes, "labels": torch.from_numpy(self.labels[rows])}
        if self.with_masks:
            target["masks"] = torch.from_numpy(self.masks_of(index, rows))
        with seeded(derive(self.seed, epoch, index, repeat)):
            flipped = torch.rand(()) < self.hflip_prob
        return mirrored(image, target) if flipped else (image, target)

    def aspects(self) -> np.ndarray:
        """Of each image the number of those with which it is batched."""
        width, height = self.sizes[self.shown].T
        return np.digitize(width / height, ASPECTS)


def mirrored(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    left, top, right, bottom = target["boxes"].unbind(1)
    boxes = torch.stack([image.shape[-1] - right, top, image.shape[-1] - left, bottom], 1)
    flipped = {name: target[name].flip(-1) for name in ("masks",) if name in target}
    return image.flip(-1), {**target, "boxes": boxes, **flipped}


class LikeShapes(TrainBatches):
    """Batches of images of about one aspect, in all processes at once: little of them is padding.

    Where a group does not fill its last batches, images from its own beginning do.
    """

    def __init__(self, groups: np.ndarray, *args: int, **kwargs: int) -> None:
        super().__init__(len(groups), *args, **kwargs)
        self.groups = torch.from_numpy(groups)
        self.whole = self.batch_size * self.world_size
        self.count = sum(-(-count // self.whole) for count in np.unique(groups, return_counts=True)[1].tolist())

    def __len__(self) -> int:
        return self.count

    def remaining(self) -> int:
        return max(0, self.count - -(-self.start // self.batch_size))

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(derive(self.seed, self.epoch))
        shuffled = torch.randperm(self.size, generator=generator)
        batches = []
        for group in self.groups.unique():
            members = shuffled[self.groups[shuffled] == group].tolist()
            filled = -(-len(members) // self.whole) * self.whole
            keys = [(self.epoch, members[i % len(members)], i // len(members)) for i in range(filled)]
            batches += [keys[i : i + self.whole] for i in range(0, filled, self.whole)]
        order = torch.randperm(len(batches), generator=generator).tolist()
        for number in order[self.count - self.remaining() :]:
            yield batches[number][self.rank :: self.world_size]


def load_data(args: Namespace) -> Data:
    """What `--data-path` holds; the part to train on is left out where nobody needs it."""
    root, with_masks = Path(args.data_path), args.detector == "mask_rcnn"
    val = read_part(root, "val", with_masks=with_masks)
    if val.crowd.all():
        raise UserError(f"{val.folder}: its annotations have no objects to find")
    if args.test_only and not args.calibrate:
        return Data(None, val, val.classes, root.resolve().name)
    how = {"with_masks": with_masks, "hflip_prob": args.hflip_prob, "seed": args.seed}
    train = read_part(root, "train", to_train=True, **how)
    if train.classes != val.classes:
        raise UserError(f"{root}: its annotations to train and to validate know different categories")
    if not len(train):
        raise UserError(f"{train.folder}: none of its {len(train.files)} images has an object to learn from")
    return Data(train, val, val.classes, root.resolve().name)


def read_part(root: Path, part: str, **how: object) -> Scenes:
    found = sorted((root / "annotations").glob(f"instances_{part}*.json"))
    if len(found) != 1:
        there = f"there are {len(found)}" if found else "there is none"
        raise UserError(f"{root}: needs one file annotations/instances_{part}*.json, {there}")
    path, folder = found[0], root / found[0].stem.removeprefix("instances_")
    try:
        content = json.loads(path.read_bytes())
        scenes = _scenes(content, folder, **how)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except KeyError as error:
        raise UserError(f"{path}: something lacks {error}, which COCO's format has") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not annotations in COCO's format ({error})") from None
    here = {os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}
    missing = [name for name in map(os.fsdecode, scenes.files) if os.path.join(folder, name) not in here]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{folder}: {missing[0]}{more} of {path.name} is missing: complete the folder")
    return scenes


def _scenes(content: dict, folder: Path, **how: object) -> Scenes:
    images, categories = (sorted(content[kind], key=lambda one: one["id"]) for kind in ("images", "categories"))
    places = {image["id"]: place for place, image in enumerate(images)}
    labels = {category["id"]: label for label, category in enumerate(categories, start=1)}
    if not images or not categories:
        raise ValueError("no images, or no categories")
    for one in content["annotations"]:
        if one["category_id"] not in labels:
            raise ValueError(f"annotation {one.get('id')} is of category {one['category_id']}, which is not listed")
        if one["image_id"] not in places:
            raise ValueError(f"annotation {one.get('id')} is of image {one['image_id']}, which is not listed")
    objects = sorted(content["annotations"], key=lambda one: places[one["image_id"]])
    outlines = [one.get("segmentation") for one in objects] if how["with_masks"] else []
    if any(isinstance(outline, list) for outline in outlines):
        masks.pycocotools()  # that it is missing is said here, not in a worker
    texts = [json.dumps(outline, separators=(",", ":")).encode() for outline in outlines]
    boxes = np.array([one["bbox"] for one in objects], np.float64).reshape(-1, 4)
    return Scenes(
        folder,
        np.array([os.fsencode(image["file_name"]) for image in images]),
        np.array([(image["width"], image["height"]) for image in images]),
        np.searchsorted([places[one["image_id"]] for one in objects], np.arange(len(images) + 1)),
        np.array([labels[one["category_id"]] for one in objects], np.int64),
        boxes,
        np.array([one.get("area", box[2] * box[3]) for one, box in zip(objects, boxes, strict=True)], np.float64),
        np.array([one.get("iscrowd", 0) for one in objects], bool),
        (b"".join(texts), np.cumsum([len(text) for text in texts])),
        [category["name"] for category in categories],
        **how,
    )
