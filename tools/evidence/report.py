"""Results as Markdown, for results/README.md and for the README between two markers. No number is typed by hand."""

import statistics
from typing import Any

from tools.evidence import verdicts
from tools.evidence.grid import METHODS
from tools.evidence.verdicts import Accuracies, Claim, Difference

SECTION = "reproduce"  # of the README


def markdown(grids: list[dict[str, Any]], pictures: str) -> str:
    """The whole report; `pictures` is the path of their folder from where the text will stand."""
    return "\n\n".join(_grid(results, pictures) for results in grids)


def settings(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(run["setting"] for run in results["runs"]))


def _grid(results: dict[str, Any], pictures: str) -> str:
    name = results["grid"]
    parts = [_opening(results)]
    for setting in settings(results):
        accuracies = Accuracies(results["runs"], setting)
        claims = verdicts.claims(results, setting)
        parts += [f"**{setting}.** {_summary(claims)}", _accuracy_table(accuracies), _claims_table(claims)]
        if accuracies.seeds("adn-features"):
            parts.append(_differences("Features distilled as well as outputs", verdicts.features(accuracies)))
        if accuracies.names("adn"):
            parts.append(f"![accuracy over GMACs]({pictures}/{name}-{setting}.png)")
        if accuracies.seeds("labels"):
            parts.append(f"![ablation]({pictures}/{name}-{setting}-ablation.png)")
    if results["steps"]:
        parts.append(_step_table(results))
    return "\n\n".join(parts)


def _opening(results: dict[str, Any]) -> str:
    runs = results["runs"]
    machines = "; ".join(sorted({run["machine"] for run in runs})) or "none yet"
    torch = ", ".join(sorted({run["versions"]["torch"] for run in runs}))
    cpu = sum(run["seconds"]["cpu"] for run in runs) / 60
    seeds = sorted({run["seed"] for run in runs})
    return (
        f"Grid `{results['grid']}` ({results['note']}): {len(runs)} of {results['planned']} runs, seeds "
        f"{', '.join(map(str, seeds))}; {machines}; torch {torch}; {cpu:.0f} processor minutes in all. "
        f"Run it again: `{results['command']}`. Accuracies are those of the last epoch on the test images, mean ± "
        "standard deviation over seeds. Differences are paired by seed; one no larger than its standard deviation "
        "is called no difference."
    )


def _summary(claims: list[Claim]) -> str:
    """Which claims hold here, in one line, and whether the setting is one to ask them in."""
    said = {"yes": "reproduced", "in part": "in part", "no": "**not reproduced**", verdicts.UNKNOWN: "undecided"}
    numbers = {answer: [str(c.number) for c in claims if c.number and c.holds == answer] for answer in said}
    summary = "; ".join(f"{said[answer]}: {', '.join(found)}" for answer, found in numbers.items() if found)
    if any(claim.number == verdicts.PREMISE and claim.holds == "no" for claim in claims):
        summary += (
            ". The premise is not met: so little trained, the deeper network is no better than the shallower one even "
            "alone, so that 1 to 4 say how the method starts, not where it arrives"
        )
    return f"Claims {summary}."


def _accuracy_table(accuracies: Accuracies) -> str:
    lines = [
        "| training | seeds | super-net Acc@1 | base-net Acc@1 | time of a run (super-net alone = 1) |",
        "|---|---|---|---|---|",
    ]
    whole, half = verdicts.super_and_base(accuracies.names("adn"))
    for method, (_, title, _) in METHODS.items():
        seeds = accuracies.seeds(method)
        if seeds:
            cells = [_mean(accuracies.of(method, name).values()) for name in (whole, half)]
            lines.append(f"| {title} | {len(seeds)} | {' | '.join(cells)} | {_mean(accuracies.times(method))} |")
    return "\n".join(lines)


def _mean(values: Any) -> str:
    values = list(values)
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _claims_table(claims: list[Claim]) -> str:
    lines = ["| claim of the paper | holds here | measured | difference | verdict |", "|---|---|---|---|---|"]
    for claim in claims:
        for number, difference in enumerate(claim.differences or (Difference("not measured", ()),)):
            text = f"{claim.number}. {claim.text}" if claim.number else claim.text
            head = (text, f"**{claim.holds}**") if number == 0 else ("", "")
            lines.append(f"| {head[0]} | {head[1]} | {difference.label} | {difference} | {difference.verdict} |")
    return "\n".join(lines)


def _differences(title: str, differences: tuple[Difference, ...]) -> str:
    lines = [f"| {title} | difference | verdict |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {d.label} | {d} | {d.verdict} |" for d in differences)])


def _step_table(results: dict[str, Any]) -> str:
    """Table 3 of the paper."""
    entries, names = results["steps"], settings(results)
    timed = {name: [entry["milliseconds"] for entry in entries if entry["setting"] == name] for name in names}
    ratios = {name: verdicts.ratios(rounds) for name, rounds in timed.items() if rounds}
    lines = [
        f"| one training step, time over that of the super-net alone | {' | '.join(ratios)} |",
        "|---|" + "---|" * len(ratios),
    ]
    for method, (_, title, _) in METHODS.items():
        cells = [_mean(row.get(method, ())) for row in ratios.values()]
        if set(cells) != {"–"}:
            lines.append(f"| {title} | {' | '.join(cells)} |")
    machines = "; ".join(sorted({f"{e['machine']}, {e['threads']} threads" for e in entries}))
    note = (
        f"Steps of the methods took turns; the median of the rounds' ratios, mean ± deviation over seeds ({machines})."
    )
    return "\n".join(lines) + f"\n\n{note}"
