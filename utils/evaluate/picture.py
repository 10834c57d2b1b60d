"""Pictures: a table's, accuracy over cost, and that of confusions. The only place to use matplotlib, an extra."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.evaluate.table import Row, pareto
from utils.files import whole_file

log = logging.getLogger(__name__)

MOST_NAMES = 40  # of classes, written beside a picture
MARKERS = "Dos^"

COSTS = {"gmacs": "GMACs per image", "latency_ms": "milliseconds per call"}

Points = Sequence[Mapping[str, float | None]]  # of sub-networks: `gmacs`, `latency_ms`, `top1`, as far as known


def draw(rows: Sequence[Row], title: str, path: Path, others: Mapping[str, Points]) -> bool:
    """Accuracy over GMACs and, where it was measured, over latency; `others` by name, hollow, for comparison.

    False, after a warning, if matplotlib is missing.
    """
    costs = [cost for cost in COSTS if all(getattr(row, cost) is not None for row in rows)]
    if (figure := new_figure(path, width=7 * len(costs), height=4.5)) is None:
        return False
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    places = [_panel(axes, cost, rows, others) for axes, cost in zip(panels, costs, strict=True)]
    figure.suptitle(title)
    panels[0].set_ylabel("Acc@1 (%)")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3 * len(costs), fontsize="small")
    for axes, (named, crowd) in zip(panels, places, strict=True):  # when it is known where everything lies
        write_names(axes, named, crowd)
    return save(figure, path)


def _panel(axes: Any, cost: str, rows: Sequence[Row], others: Mapping[str, Points]) -> tuple[dict, list]:
    """Draw the points over one cost, with the Pareto front. Returns those to be named, and the others."""
    points, front = {row.name: (getattr(row, cost), row.top1) for row in rows}, pareto(rows, cost)
    axes.plot(*zip(*(points[row.name] for row in front), strict=True), "-", color="C0", label="Pareto front")
    axes.scatter(*zip(*points.values(), strict=True), color="C0", label="sub-networks", zorder=3)
    crowd = []
    for number, (name, theirs) in enumerate(others.items(), 1):
        places = [(point[cost], point["top1"]) for point in theirs if point.get(cost) is not None]
        x, y = zip(*places, strict=True) if places else ((), ())
        axes.plot(x, y, MARKERS[number % len(MARKERS)], color=f"C{number}", fillstyle="none", label=name)
        crowd += places
    axes.set_xlabel(COSTS[cost])
    axes.grid(alpha=0.3)
    axes.margins(0.08)
    return {row.name: points[row.name] for row in (rows if len(rows) <= 16 else front)}, crowd


def confusion(percent: np.ndarray, classes: Sequence[str], title: str, path: Path) -> bool:
    """Of each class's images (a row), what was said of them. False, after a warning, if matplotlib is missing."""
    if (figure := new_figure(path, width=7, height=6)) is None:
        return False
    axes = figure.subplots()
    figure.colorbar(axes.imshow(percent, vmin=0, vmax=100), label="% of the class's images")
    axes.set(title=title, xlabel="said", ylabel="class")
    if len(classes) <= MOST_NAMES:
        names = [name.encode(errors="replace").decode().replace("$", r"\$") for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    return save(figure, path)


def activation_maps(
    images: np.ndarray, maps: Mapping[str, np.ndarray], titles: Sequence[str], title: str, path: Path
) -> bool:
    """`maps`, by row: blocks x images x H x W in [0, 1], over the images; a column for each of `titles`.

    False, after a warning, if matplotlib is missing.
    """
    if (figure := new_figure(path, width=1.6 * (1 + len(titles)), height=1.7 * len(images) * len(maps))) is None:
        return False
    panels = figure.subplots(len(images) * len(maps), 1 + len(titles), squeeze=False)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for number, image in enumerate(images):
        for row, (name, of_blocks) in enumerate(maps.items(), start=number * len(maps)):
            panels[row, 0].imshow(image)
            panels[row, 0].set_ylabel(name, fontsize=8)
            for axes, block in zip(panels[row, 1:], of_blocks, strict=False):
                axes.imshow(image)
                axes.imshow(block[number], cmap="jet", alpha=0.45, vmin=0, vmax=1)
    for axes, text in zip(panels[0, 1:], titles, strict=True):
        axes.set_title(text, fontsize=8)
    figure.suptitle(title)
    return save(figure, path)


def new_figure(path: Path, width: float, height: float) -> Any | None:
    """A figure, or after a warning None."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("%s was not drawn: matplotlib is missing (pip install matplotlib)", path.name)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> bool:
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return True


def write_names(
    axes: Any, named: Mapping[str, tuple[float, float]], others: Sequence[tuple[float, float]]
) -> list[Any]:
    """Write each name near its point, where it covers neither a point nor another name."""
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # now it is known where everything lies, and there it stays
    axes.figure.set_layout_engine("none")
    points = axes.transData.transform([*named.values(), *others])
    taken, texts = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in points], []
    for name, point in named.items():
        text = axes.annotate(name, point, (0, 0), textcoords="offset points", ha="center", va="center", fontsize=7)
        for place in range(240):  # twelve on each of twenty rings
            radius, angle = 9 + 2 * (place // 12), math.pi * (place % 12 - 2) / 6
            text.set_position((1.7 * radius * math.cos(angle), radius * math.sin(angle)))
            box = text.get_window_extent()
            corners = all(axes.bbox.contains(x, y) for x, y in box.corners())
            if corners and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        texts.append(text)
    return texts
