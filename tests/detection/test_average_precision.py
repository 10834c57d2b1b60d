"""Average precision is what COCO's own evaluation says, crowds and sizes that do not count included."""

import contextlib
import io

import numpy as np
import pytest

from utils.detection import masks
from utils.detection.average_precision import Found, Truth, average_precision, match

pycocotools = pytest.importorskip("pycocotools")
HEIGHT, WIDTH = 150, 170


def box_mask(box: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A ragged ellipse in a box."""
    x, y, width, height = box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside = ((columns - x - width / 2) / width) ** 2 + ((rows - y - height / 2) / height) ** 2 < 0.25
    return (inside & (random.random((HEIGHT, WIDTH)) < 0.9)).astype(np.uint8)


def objects(random: np.random.Generator, count: int, near: np.ndarray | None = None) -> np.ndarray:
    sides = random.choice([12, 25, 40, 90, 120], (count, 2)) * random.uniform(0.8, 1.2, (count, 2))
    boxes = np.concatenate([random.uniform(0, 60, (count, 2)), sides], 1)
    if near is not None and len(near):
        boxes[::2] = near[random.integers(len(near), size=len(boxes[::2]))] + random.normal(0, 2, boxes[::2].shape)
    return boxes.clip(1)


def scene(random: np.random.Generator) -> tuple[Truth, Found]:
    boxes = objects(random, int(random.integers(0, 8)))
    found = objects(random, int(random.integers(0, 14)), boxes)
    shown = np.array([box_mask(box, random) for box in boxes], np.uint8).reshape(-1, HEIGHT, WIDTH)
    seen = np.array([box_mask(box, random) for box in found], np.uint8).reshape(-1, HEIGHT, WIDTH)
    labels, crowd = random.integers(1, 4, len(boxes)), random.random(len(boxes)) < 0.2
    scores = random.integers(0, 20, len(found)) / 20  # many are equal
    truth = Truth(labels, boxes, shown.sum((1, 2)).astype(float), crowd, shown)
    return truth, Found(random.integers(1, 5, len(found)), scores, found, seen)


def theirs(scenes: list[tuple[Truth, Found]], kind: str) -> np.ndarray:
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def outline(pixels: np.ndarray) -> dict:
        return mask.encode(np.asfortranarray(pixels))

    annotations, results = [], []
    for image, (truth, found) in enumerate(scenes):
        for label, box, area, crowd, pixels in zip(*truth, strict=True):
            own = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label), "bbox": box.tolist()}
            annotations.append({**own, "area": area, "iscrowd": int(crowd), "segmentation": outline(pixels)})
        for label, score, box, pixels in zip(*found, strict=True):
            what = {"bbox": box.tolist()} if kind == "bbox" else {"segmentation": outline(pixels)}
            results.append({"image_id": image, "category_id": int(label), "score": float(score), **what})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": image, "height": HEIGHT, "width": WIDTH} for image in range(len(scenes))]
        categories = [{"id": label} for label in range(1, 5)]
        coco.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6]


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_that_of_pycocotools(seed: int) -> None:
    random = np.random.default_rng(seed)
    scenes = [scene(random) for _ in range(25)]
    assert any(truth.crowd.any() for truth, _ in scenes)
    for kind in ("bbox", "segm"):
        matches = {}
        for image, (truth, found) in reversed(list(enumerate(scenes))):  # in whatever order
            matches |= match(image, truth, found, kind == "segm")
        ours, expected = list(average_precision(matches).values()), theirs(scenes, kind)
        assert 0 < expected[0] < 1
        assert (expected > -1).all()
        assert ours == pytest.approx(expected.tolist(), abs=1e-9)


def test_nothing_at_all_has_no_precision() -> None:
    assert set(average_precision({}).values()) == {-1.0}


def test_masks_are_those_of_pycocotools() -> None:
    from pycocotools import mask

    random = np.random.default_rng(0)
    for pixels in (random.random((9, 13)) < 0.4, np.zeros((3, 4)), np.ones((40, 50)), random.random((400, 300)) < 0.01):
        pixels = pixels.astype(np.uint8)
        packed = mask.encode(np.asfortranarray(pixels))
        outline = {"size": packed["size"], "counts": packed["counts"].decode()}
        assert np.array_equal(masks.decode(outline, *pixels.shape), pixels)
        assert masks.unpacked(outline["counts"]) == masks.runs_of(pixels)
        assert np.array_equal(masks.decode({"counts": masks.runs_of(pixels)}, *pixels.shape), pixels)
    triangle = [[1.0, 1.0, 9.0, 1.0, 1.0, 9.0]]
    assert 25 < masks.decode(triangle, 10, 12).sum() < 40
    with pytest.raises(ValueError, match="a mask has 6 pixels, its image 2 x 4"):
        masks.decode({"counts": [2, 4]}, 2, 4)
