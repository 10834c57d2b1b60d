"""results/method.md, the whole of it, and its pictures: accuracy over GMACs of all sub-networks of a setting."""

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.reproduce.claims import PREMISE, Setting
from benchmarks.reproduce.grids import METHODS
from utils.errors import UserError
from utils.files import whole_file

OPENING = """# Does the method do what its paper says?

Written by `python -m benchmarks.reproduce --report` from results/*.json, which name the command of every run. Accuracies
(Acc@1, %) are those of the last epoch on all test images, mean ± standard deviation over seeds. Differences are paired
by seed, in points; one no larger than its standard deviation is called no difference."""
NO_PREMISE = """
The premise is not met: trained so little, the deeper network is no better than the shallower one even alone. So here the
claims about accuracy say how the method starts, not where it arrives."""


def write(folder: Path) -> Path:
    """The page and its pictures, from every grid's results, the larger grids first."""
    contents = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    grids = {name: content for name, content in contents.items() if "planned" in content}
    if not grids:
        raise UserError(f"{folder}: no results of a grid there; run `python -m benchmarks.reproduce` first")
    lines = [OPENING]
    for name, content in sorted(grids.items(), key=lambda item: -item[1]["planned"]):
        lines.append(opening(name, content))
        for title in dict.fromkeys(run["setting"] for run in content["runs"]):
            setting = Setting([run for run in content["runs"] if run["setting"] == title])
            lines += [f"\n### {title}\n", *tables(setting)]
            if draw(setting, f"{title}, grid {name}", folder / f"{name}-{title}.png"):
                lines.append(f"\n![{title}: accuracy over GMACs]({name}-{title}.png)")
    with whole_file(folder / "method.md") as file:
        file.write(("\n".join(lines) + "\n").encode())
    return folder / "method.md"


def opening(name: str, content: dict[str, Any]) -> str:
    runs = content["runs"]
    machines = "; ".join(sorted({f"{run['machine']}, torch {run['versions']['torch']}" for run in runs}))
    hours = sum(run["seconds"]["cpu"] for run in runs) / 3600
    return (
        f"\n## Grid `{name}`\n\n{content['note']}. {len(runs)} of {content['planned']} runs ({machines}; {hours:.1f} "
        f"processor hours of training). Run it again: `python -m benchmarks.reproduce {name}`."
    )


def tables(setting: Setting) -> list[str]:
    lines = [
        "| training | seeds | super-net | base-net | time of a run (super-net alone = 1) |",
        "|---|---|---|---|---|",
    ]
    alone = setting.seconds("super")
    for method, (title, *_) in METHODS.items():
        if seconds := setting.seconds(method):
            top1 = [mean(setting.top1(method, subnet).values()) for subnet in (setting.whole, setting.half)]
            times = [seconds[seed] / alone[seed] for seed in seconds.keys() & alone]
            lines.append(f"| {title} | {len(seconds)} | {' | '.join(top1)} | {mean(times)} |")
    lines += ["", "| claim | measured | difference | verdict |", "|---|---|---|---|"]
    claims = setting.claims()
    lines += [f"| {claim.text} | {claim.label} | {claim} | {claim.verdict} |" for claim in claims]
    return lines + [NO_PREMISE] * (claims[0].text == PREMISE and "not" in claims[0].verdict)


def mean(values: Iterable[float]) -> str:
    values = list(values)
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}" if values else "–"


def draw(setting: Setting, title: str, path: Path) -> bool:
    """All sub-networks of ADN, error bars over seeds, beside the networks trained alone."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the page's pictures need matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, names = figure.subplots(), []
    alone = [("super", setting.whole), ("base", setting.half)]
    for label, form, shown in (
        ("ADN, all sub-networks of one run", "o", [("adn", name) for name in setting.gmacs]),
        ("trained alone", "s", alone),
    ):
        found = [(name, list(values.values())) for method, name in shown if (values := setting.top1(method, name))]
        if found:
            x, y = [setting.gmacs[name] for name, _ in found], [statistics.fmean(values) for _, values in found]
            spread = [statistics.stdev(values) if len(values) > 1 else 0 for _, values in found]
            axes.errorbar(x, y, spread, fmt=form, capsize=3, label=label)
            names += [(name, x, y) for (name, _), x, y in zip(found, x, y, strict=True) if form == "o"]
    if not names:
        return False
    axes.set(xlabel="GMACs per image", ylabel="Acc@1 (%)")
    axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=2)
    place(figure, axes, names)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return True


def place(figure: Any, axes: Any, names: list[tuple[str, float, float]]) -> list[Any]:
    """Write each name near its point, where it covers neither a point nor another name."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # now it is known where everything lies
    figure.set_layout_engine("none")
    points = axes.transData.transform([(x, y) for _, x, y in names])
    taken, texts = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in points], []
    for name, x, y in names:
        text = axes.annotate(name, (x, y), (0, 0), textcoords="offset points", ha="center", va="center", fontsize=7)
        for step in range(240):
            radius, angle = 12 + 2 * (step // 12), math.pi * (step % 12) / 6
            text.set_position((1.6 * radius * math.cos(angle), radius * math.sin(angle)))
            box = text.get_window_extent()
            inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and axes.bbox.containsy(box.y0)
            if inside and axes.bbox.containsy(box.y1) and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        texts.append(text)
    return texts
