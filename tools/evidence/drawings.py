"""The report's two pictures: all sub-networks beside the individual networks, and the ablation. Needs matplotlib."""

import statistics
from pathlib import Path
from typing import Any

from tools.evidence import verdicts
from tools.evidence.grid import METHODS
from tools.evidence.verdicts import Accuracies
from utils.errors import UserError
from utils.files import whole_file

ABLATION = ("labels-shared-norms", "shared-norms", "labels", "adn", "adn-features")


def draw(results: dict[str, Any], setting: str, folder: Path) -> list[Path]:
    """What can be drawn of a setting's results."""
    accuracies = Accuracies(results["runs"], setting)
    title = f"{setting}, grid {results['grid']}"
    stem = folder / f"{results['grid']}-{setting}"
    written = []
    if accuracies.names("adn"):
        written.append(_subnets(accuracies, title, stem.with_name(f"{stem.name}.png")))
    if accuracies.seeds("labels"):
        written.append(_ablation(accuracies, title, stem.with_name(f"{stem.name}-ablation.png")))
    return written


def _figure(width: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the report's pictures need matplotlib: pip install matplotlib, or say --no-pictures") from None
    figure = Figure(figsize=(width, 4.5), layout="constrained")
    return figure, figure.subplots()


def _subnets(accuracies: Accuracies, title: str, path: Path) -> Path:
    """Accuracy over GMACs of all sub-networks, error bars over seeds; the networks trained alone as points."""
    names = accuracies.names("adn")
    some_run = accuracies.runs["adn", accuracies.seeds("adn")[0]]
    gmacs = {name: some_run[name]["gmacs"] for name in names}
    figure, axes = _figure(7)
    places = [(gmacs[name], *_mean(accuracies.of("adn", name))) for name in names]
    axes.errorbar(*zip(*places, strict=True), fmt="o", color="C0", capsize=2, label="ADN, all sub-networks of one run")
    for name, (x, y, _) in zip(names, places, strict=True):
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, -9), fontsize=7)
    whole, half = verdicts.super_and_base(names)
    alone = [
        (gmacs[name], *_mean(accuracies.of(m, name)))
        for m, name in (("super", whole), ("base", half))
        if accuracies.seeds(m)
    ]
    if alone:
        axes.errorbar(*zip(*alone, strict=True), fmt="s", color="C1", capsize=4, label="trained alone")
    axes.set(title=title, xlabel="GMACs per image", ylabel="Acc@1 (%)")
    return _save(figure, axes, path)


def _ablation(accuracies: Accuracies, title: str, path: Path) -> Path:
    """Table 4 of the paper as bars, super-net and base-net side by side."""
    methods = [method for method in ABLATION if accuracies.seeds(method)]
    figure, axes = _figure(8)
    values = []
    for number, (net, name) in enumerate(
        zip(("super-net", "base-net"), verdicts.super_and_base(accuracies.names("adn")), strict=True)
    ):
        means, spreads = zip(*(_mean(accuracies.of(method, name)) for method in methods), strict=True)
        places = [place + 0.4 * number for place in range(len(methods))]
        axes.bar(places, means, 0.38, yerr=spreads, capsize=3, label=net)
        values += [m - s for m, s in zip(means, spreads, strict=True)] + [
            m + s for m, s in zip(means, spreads, strict=True)
        ]
    margin = max(0.1 * (max(values) - min(values)), 0.1)
    axes.set_ylim(min(values) - margin, max(values) + 3 * margin)
    titles = [METHODS[method][1].replace("ADN ", "ADN\n", 1) for method in methods]
    axes.set_xticks([place + 0.2 for place in range(len(methods))], titles, fontsize=8)
    axes.set(title=title, ylabel="Acc@1 (%)")
    return _save(figure, axes, path)


def _mean(by_seed: dict[int, float]) -> tuple[float, float]:
    values = list(by_seed.values())
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _save(figure: Any, axes: Any, path: Path) -> Path:
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return path
