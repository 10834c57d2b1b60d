"""Names in the picture lie beside their points and beside each other."""

import itertools
import random

import pytest

from utils.evaluate import picture

figures = pytest.importorskip("matplotlib.figure", reason="the picture is an extra that needs matplotlib")


def test_names_cover_neither_points_nor_each_other():
    """Sixteen points crowded in a corner, some of them almost the same, as when many sub-networks are alike."""
    draws = random.Random(0)
    names = {"".join(name): (draws.gauss(0, 1), draws.gauss(0, 1)) for name in itertools.product("FT", repeat=4)}
    names |= {"FFFF": (-0.1, 0.0), "FFFT": (-0.1, 0.01), "FFTF": (-0.1, 0.02), "TTTT": (5.0, 5.0)}
    figure = figures.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*zip(*names.values(), strict=True))
    texts = picture.write_names(axes, names, [(5.0, 4.9)])
    boxes = [text.get_window_extent() for text in texts]
    assert [text.get_text() for text in texts] == list(names)
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    points = axes.transData.transform(list(names.values()))
    assert not [(box, point) for box in boxes for point in points if box.contains(*point)]
    assert all(axes.bbox.contains(*corner) for box in boxes for corner in box.corners())
