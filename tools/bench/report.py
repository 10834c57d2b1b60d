"""A benchmark's results as Markdown: what was to be reached, then every number with its spread."""

from tools.bench import inputs, step, subnets
from tools.bench.results import Group, Results
from tools.bench.targets import Verdict, verdicts


def markdown(results: Results) -> str:
    return "\n\n".join([*_judged(results), *_tables(results), *_missing(results)]) + "\n"


def folded(results: Results) -> str:
    """For a page that has more to say: the tables behind a line to open."""
    tables = "\n\n".join(_tables(results))
    details = f"<details>\n<summary>Every number with its spread</summary>\n\n{tables}\n\n</details>"
    return "\n\n".join([*_judged(results), *_missing(results), details])


def _judged(results: Results) -> list[str]:
    return [_machine(results), _table_of_targets(verdicts(results))]


def _tables(results: Results) -> list[str]:
    by_title: dict[str, list[Group]] = {}
    for group in results.groups:
        by_title.setdefault(group.title, []).append(group)
    return [
        f"**{title[0].upper()}{title[1:]}** ({_explained(groups[0])})\n\n{_table_of(groups)}"
        for title, groups in by_title.items()
    ]


def _missing(results: Results) -> list[str]:
    if not results.skipped:
        return []
    return ["Not measured: " + "; ".join(f"{what} ({why})" for what, why in results.skipped.items()) + "."]


def _machine(results: Results) -> str:
    about = results.machine
    allocator = "".join(f", {name}={value}" for name, value in about["allocator"].items())
    kind = "GPU" if about["device"] == "cuda" else f"{about['instructions']}, {_threads(about['threads'])}{allocator}"
    versions = f"torch {about['torch']}, torchvision {about['torchvision']}, Python {about['python']}"
    return (
        f"{about['name']} ({kind}), {versions}. Medians of calls that took turns, quartiles in brackets; a ratio is "
        "the median of the rounds' ratios. *By MACs*: what it would be if time were proportional to "
        "multiply-accumulates."
    )


def _threads(count: int) -> str:
    """With one thread processor time is counted (see utils.evaluate.timing)."""
    return "1 thread, its processor time" if count == 1 else f"{count} threads"


def _table_of_targets(rows: list[Verdict]) -> str:
    lines = ["| what | model | goal | by MACs | measured | reached |", "|---|---|---|---|---|---|"]
    elsewhere: dict[str, list[str]] = {}
    for row in rows:
        if row.elsewhere:
            elsewhere.setdefault(f"{row.what} {row.bound} (needs {row.elsewhere})", []).append(row.model)
            continue
        measured = _spread(row.measured) if row.measured else f"not measured: {row.why}"
        reached = {True: "yes", False: "**no**", None: ""}[row.reached]
        predicted = f"{row.predicted:.2f}" if row.predicted else ""
        lines.append(f"| {row.what} | {row.model} | {row.bound} | {predicted} | {measured} | {reached} |")
    if elsewhere:
        goals = "; ".join(f"{what}: {', '.join(models)}" for what, models in elsewhere.items())
        lines += ["", f"Goals of other machines: {goals}."]
    return "\n".join(lines)


def _explained(group: Group) -> str:
    baseline = {
        step.TITLE: "images/s; ratio of speeds to the reference's recipe as written",
        step.COMPILED: "images/s; ratio of speeds to ours uncompiled",
        subnets.LATENCY: "milliseconds; ratio to the super-net",
        subnets.SINGLE: "milliseconds; ratio to the super-net uncompiled",
        subnets.ALL: "milliseconds; ratio to separate runs",
        subnets.SWITCHING: "milliseconds; ratio to the same calls sorted",
        inputs.TITLE: "images/s on one core; ratio to the classic chain",
    }[group.title]
    return f"{baseline}; {', '.join(f'{key} {value}' for key, value in group.about.items())}".rstrip("; ")


def _table_of(groups: list[Group]) -> str:
    lines = ["| model | batch | | median (quartiles) | ratio | by MACs |", "|---|---|---|---|---|---|"]
    for group in groups:
        for name in group.samples:
            median = _rate(group, name) if group.part == "step" else _spread(group.spread(name))
            row = (group.model, str(group.batch), name + _memory(group, name), median, *_compared(group, name))
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _compared(group: Group, name: str) -> tuple[str, str]:
    """The measured ratio and that of the MACs, to the group's baseline; of steps it is the ratio of their speeds."""
    base = _baseline(group)
    if name == base:
        return "", ""
    over, under = (base, name) if group.part == "step" else (name, base)
    predicted = group.by_macs(over, under)
    return _spread(group.ratio(over, under)), f"{predicted:.2f}" if predicted else ""


def _baseline(group: Group) -> str:
    """What a group's other rows are compared with."""
    preferred = ("reference fp32", "separate runs", "sorted", "classic", "ours")
    known = [name for name in preferred if name in group.samples]
    return known[0] if known else next(iter(group.samples))


def _rate(group: Group, name: str) -> str:
    return _spread(tuple(sorted(1000 * group.batch / ms for ms in group.spread(name))))


def _memory(group: Group, name: str) -> str:
    return f", {group.memory[name] / 2**30:.1f} GiB" if name in group.memory else ""


def _spread(values: tuple[float, float, float]) -> str:
    low, middle, high = values
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
