"""Pictures: a table's, accuracy over GMACs, and that of confusions. The only place to use matplotlib, an extra."""

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

Published = Mapping[str, Mapping[str, Mapping[str, float]]]  # release → sub-network → `gmacs` and `acc@1`


def draw(rows: Sequence[Row], title: str, path: Path, published: Published, note: str = "published") -> bool:
    """Accuracy over GMACs, with the Pareto front and, for comparison, what others published of the same model.

    `note` says what the others are, if they are something else. False, after a warning, if matplotlib is missing.
    """
    if (figure := _figure(path, height=4.5)) is None:
        return False
    axes = figure.subplots()
    front = pareto(rows)
    axes.plot([row.gmacs for row in front], [row.top1 for row in front], "-", color="C0", label="Pareto front")
    axes.scatter([row.gmacs for row in rows], [row.top1 for row in rows], color="C0", label="sub-networks")
    others = []
    for number, (release, points) in enumerate(published.items(), 1):
        places = [(point["gmacs"], point["acc@1"]) for point in points.values()]
        label = f"{release} ({note})"
        axes.plot(*zip(*places, strict=True), "s--", color=f"C{number}", fillstyle="none", label=label)
        others += places
    axes.set(title=title, xlabel="GMACs per image", ylabel="Acc@1 (%)")
    axes.grid(alpha=0.3)
    axes.margins(0.08)
    figure.legend(loc="outside lower center", ncols=4)
    named = rows if len(rows) <= 16 else front
    write_names(axes, {row.name: (row.gmacs, row.top1) for row in named}, others)
    return _save(figure, path)


def confusion(percent: np.ndarray, classes: Sequence[str], title: str, path: Path) -> bool:
    """Of each class's images (a row), what was said of them. False, after a warning, if matplotlib is missing."""
    if (figure := _figure(path, height=6)) is None:
        return False
    axes = figure.subplots()
    figure.colorbar(axes.imshow(percent, vmin=0, vmax=100), label="% of the class's images")
    axes.set(title=title, xlabel="said", ylabel="class")
    if len(classes) <= MOST_NAMES:
        names = [name.encode(errors="replace").decode().replace("$", r"\$") for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    return _save(figure, path)


def _figure(path: Path, height: float) -> Any | None:
    """A figure, or after a warning None."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("%s was not drawn: matplotlib is missing (pip install matplotlib, or say --no-picture)", path.name)
        return None
    return Figure(figsize=(7, height), layout="constrained")


def _save(figure: Any, path: Path) -> bool:
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
