"""The picture of a table of sub-networks, accuracy over GMACs. The only place to use matplotlib, an optional extra."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.evaluate.table import Row, pareto
from utils.files import whole_file

log = logging.getLogger(__name__)

Published = Mapping[str, Mapping[str, Mapping[str, float]]]  # release → sub-network → `gmacs` and `acc@1`


def draw(rows: Sequence[Row], title: str, path: Path, published: Published) -> bool:
    """Accuracy over GMACs, with the Pareto front and, for comparison, what others published of the same model.

    False, after a warning, if matplotlib is missing: the table is worth having without the picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("%s was not drawn: matplotlib is missing (pip install matplotlib, or say --no-picture)", path.name)
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    front = pareto(rows)
    axes.plot([row.gmacs for row in front], [row.top1 for row in front], "-", color="C0", label="Pareto front")
    axes.scatter([row.gmacs for row in rows], [row.top1 for row in rows], color="C0", label="sub-networks")
    for row in rows if len(rows) <= 16 else front:
        axes.annotate(row.name, (row.gmacs, row.top1), textcoords="offset points", xytext=(4, -9), fontsize=7)
    for number, (release, points) in enumerate(published.items(), 1):
        places = [(point["gmacs"], point["acc@1"]) for point in points.values()]
        label = f"{release} (published)"
        axes.plot(*zip(*places, strict=True), "s--", color=f"C{number}", fillstyle="none", label=label)
    axes.set(title=title, xlabel="GMACs per image", ylabel="Acc@1 (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return True
