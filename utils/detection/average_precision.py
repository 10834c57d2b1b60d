"""COCO's average precision of boxes and masks, by the rules of its own evaluation; in numpy.

Detections of an image and class are matched to its objects, best score first, at ten thresholds of overlap and four
ranges of size. What is left of an image are a few small arrays: these travel between processes, and give the same
numbers whichever process saw which image.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # all, small, medium, large
MOST = 100  # detections of an image and class


class Truth(NamedTuple):
    """The objects of an image. A detection on a crowd, or on an object of another size, counts neither way."""

    labels: np.ndarray
    boxes: np.ndarray  # x, y, width, height
    areas: np.ndarray
    crowd: np.ndarray  # bool
    masks: np.ndarray | None = None  # objects x pixels, 0 or 1


class Found(NamedTuple):
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray | None = None


class Matches(NamedTuple):
    """The detections of one image and class."""

    right: np.ndarray  # areas x thresholds x detections; so is the next
    ignored: np.ndarray
    scores: np.ndarray
    objects: np.ndarray  # how many count, by area


def match(image: int, truth: Truth, found: Found, by_masks: bool = False) -> dict[tuple[int, int], Matches]:
    """By label and image."""
    matches = {}
    for label in np.union1d(truth.labels, found.labels).tolist():
        mine = np.flatnonzero(found.labels == label)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")][:MOST]
        theirs = np.flatnonzero(truth.labels == label)
        crowd = truth.crowd[theirs]
        if by_masks:
            own, other = _flat(found.masks[mine]), _flat(truth.masks[theirs])
            areas, both = own.sum(1, dtype=np.float64), (own @ other.T).astype(np.float64)
            overlap = _overlaps(both, areas, other.sum(1, dtype=np.float64), crowd)
        else:
            own, other = found.boxes[mine].astype(np.float64), truth.boxes[theirs].astype(np.float64)
            areas = own[:, 2] * own[:, 3]
            low = np.maximum(own[:, None, :2], other[None, :, :2])
            high = np.minimum((own[:, :2] + own[:, 2:])[:, None], (other[:, :2] + other[:, 2:])[None])
            both = (high - low).clip(0).prod(2)
            overlap = _overlaps(both, areas, other[:, 2] * other[:, 3], crowd)
        outside = (truth.areas[theirs] < AREAS[:, :1]) | (truth.areas[theirs] > AREAS[:, 1:])
        ignored = crowd | outside
        hits = [_match(overlap, crowd, ignored_here) for ignored_here in ignored]
        right, on_ignored = (np.stack(part) for part in zip(*hits, strict=True))
        too_small_or_large = (areas < AREAS[:, :1]) | (areas > AREAS[:, 1:])
        on_ignored |= ~right & too_small_or_large[:, None]
        matches[label, image] = Matches(right, on_ignored, found.scores[mine], (~ignored).sum(1))
    return matches


def _flat(masks: np.ndarray) -> np.ndarray:
    """In a type of number whose matrix products are fast, and exact up to 2^24 pixels."""
    return masks.reshape(len(masks), int(np.prod(masks.shape[1:]))).astype(np.float32)


def _overlaps(both: np.ndarray, own: np.ndarray, other: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Intersection over union; on a crowd, over the detection."""
    union = np.where(crowd, own[:, None], own[:, None] + other - both)
    return np.divide(both, union, out=np.zeros_like(both), where=both > 0)


def _match(overlap: np.ndarray, crowd: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which detections have an object, and which of them one that is ignored: thresholds x detections.

    Each takes the free object that it overlaps most, an ignored one only if no other will do; a crowd is always free.
    """
    shape = len(THRESHOLDS), len(overlap)
    right, on_ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    if not len(ignored):
        return right, on_ignored
    rows, free = np.arange(len(THRESHOLDS)), np.ones((len(THRESHOLDS), len(ignored)), bool)
    for number, own in enumerate(overlap):
        fit = np.where(free & (own >= np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]), own, -1.0)
        counted = np.where(ignored, -1.0, fit)
        fit = np.where((counted.max(1) >= 0)[:, None], counted, fit)
        best = len(ignored) - 1 - fit[:, ::-1].argmax(1)  # of equals the last
        hit = fit[rows, best] >= 0
        right[:, number], on_ignored[:, number] = hit, hit & ignored[best]
        free[rows[hit], best[hit]] = False
        free |= crowd
    return right, on_ignored


def average_precision(matches: Mapping[tuple[int, int], Matches]) -> dict[str, float]:
    """AP, AP50, AP75, and AP of small, medium and large objects, from 0 to 1; -1 where there are no such objects."""
    by_label: dict[int, list[Matches]] = {}
    for label, image in sorted(matches):
        by_label.setdefault(label, []).append(matches[label, image])
    precisions = np.stack([_precision(found) for found in by_label.values()] or [np.full((4, 10, 101), -1.0)])

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    whole = precisions[:, 0]
    figures = {"AP": mean(whole), "AP50": mean(whole[:, 0]), "AP75": mean(whole[:, 5])}
    return figures | {name: mean(precisions[:, row]) for row, name in ((1, "APs"), (2, "APm"), (3, "APl"))}


def _precision(found: Iterable[Matches]) -> np.ndarray:
    """Of one class, by area, threshold and recall."""
    right, ignored, scores = (np.concatenate(part, -1) for part in list(zip(*found, strict=True))[:3])
    objects = np.sum([one.objects for one in found], 0)
    order = np.argsort(-scores, kind="stable")
    hits = (right & ~ignored)[..., order].cumsum(-1, dtype=np.float64)
    misses = (~right & ~ignored)[..., order].cumsum(-1, dtype=np.float64)
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    result = np.full((len(AREAS), len(THRESHOLDS), len(RECALLS)), -1.0)
    for area in np.flatnonzero(objects):
        for threshold in range(len(THRESHOLDS)):
            places = np.searchsorted(hits[area, threshold] / objects[area], RECALLS)
            kept = np.append(precision[area, threshold], 0.0)
            result[area, threshold] = kept[places]
    return result
