"""The evidence: verdicts on hand-made numbers, a tiny grid killed and continued, README and results in agreement."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tools import reproduce
from tools.evidence import collect, drawings, report, verdicts
from tools.evidence.grid import Grid, Run, Setting
from tools.evidence.grids import FULL, QUICK
from tools.evidence.runner import LOG, Executor, Failed, finished
from tools.evidence.steps import measure
from tools.evidence.verdicts import BETTER, SAME, UNKNOWN, WORSE, Accuracies, Difference
from tools.sections import put, section
from utils.errors import UserError
from utils.evaluate.timing import Effort
from utils.flags.arguments import parser

ROOT = Path(__file__).parents[2]
TINY = Setting(
    "tiny",
    "--model regnet_y_400mf",
    "--data-path digits --train-crop-size 16 --val-resize-size 16 --val-crop-size 16 --train-images 240 "
    "--val-images 50 --epochs 3 --batch-size 60 --workers 0",
    ("adn", "base"),
    0.1,
)
GRID = Grid("tiny", "a test", (TINY,), (5,))


def made_up(adn_seconds: float = 150, **top1: list[dict[str, float]]) -> dict:
    """Results of a setting with two stages: for each method, seed by seed, what each sub-network reached."""
    seconds = {"adn": adn_seconds, "super": 100, "base": 70}
    runs = [
        {
            "setting": "made-up",
            "method": method.replace("_", "-"),
            "seed": seed,
            "subnets": {name: {"top1": value, "gmacs": 1 + name.count("F")} for name, value in values.items()},
            "seconds": {"wall": 999, "cpu": seconds.get(method, 150) + seed},
            "device": "cpu",
            "machine": "an abacus",
            "versions": {"torch": "0"},
        }
        for method, seeds in top1.items()
        for seed, values in enumerate(seeds)
    ]
    about = {"grid": "made-up", "note": "a test", "command": "none", "planned": len(runs)}
    return {**about, "runs": runs, "steps": []}


def adn(super_net: float, base_net: float, early: float, late: float) -> dict[str, float]:
    return {"FF": super_net, "TF": early, "FT": late, "TT": base_net}


GOOD = [adn(80, 76, 79, 78), adn(81, 77, 80, 79), adn(82, 78, 81, 80)]


def lower(rows: list[dict[str, float]], by: list[float]) -> list[dict[str, float]]:
    return [{name: value - less for name, value in row.items()} for row, less in zip(rows, by, strict=True)]


def holds(results: dict) -> dict[int, str]:
    return {claim.number: claim.holds for claim in verdicts.claims(results, "made-up")}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((1.0, 1.2, 1.1), BETTER),
        ((-1.0, -1.2, -1.1), WORSE),
        ((1.0, -1.0, 0.5), SAME),
        ((2.0, 0.0, 1.0), SAME),  # as large as its spread
        ((5.0, 5.1), UNKNOWN),
        ((), UNKNOWN),
    ],
)
def test_a_difference_counts_when_it_exceeds_its_spread(values, verdict):
    assert Difference("", values).verdict == verdict


def test_every_claim_can_hold_and_fail():
    alone = {"super": [{"FF": row["FF"] - 1} for row in GOOD], "base": [{"TT": row["TT"] - 1} for row in GOOD]}
    without = {"labels": lower(GOOD, [1, 2, 2]), "shared_norms": lower(GOOD, [2, 2, 1])}
    both = {"labels_shared_norms": lower(GOOD, [3, 3, 4])}
    good = made_up(adn=GOOD, **alone, **without, **both)
    rounds = {"adn": [15, 16], "super": [10, 10], "base": [7, 7]}
    good["steps"] = [{"setting": "made-up", "machine": "an abacus", "threads": 1, "milliseconds": rounds}]
    assert holds(good) == {0: "yes", 1: "yes", 2: "yes", 3: "yes", 4: "yes", 5: "yes"}

    alone = {"super": [{"FF": row["FF"] + 1} for row in GOOD], "base": [{"TT": row["TT"] + 6} for row in GOOD]}
    sagging = [{**row, "FT": row["TT"] - 3 - 0.1 * seed} for seed, row in enumerate(GOOD)]
    bad = made_up(
        adn_seconds=190, adn=sagging, **alone, labels=sagging, shared_norms=lower(sagging, [-1, -1, -2]), **both
    )
    assert holds(bad) == {0: "no", 1: "no", 2: "no", 3: "no", 4: "no", 5: "no"}
    assert "premise is not met" in report.markdown([bad], "pictures")
    assert "premise is not met" not in report.markdown([good], "pictures")


def test_half_an_answer_and_no_answer():
    part = made_up(
        adn=GOOD, labels=lower(GOOD, [1, 2, 2]), shared_norms=GOOD, labels_shared_norms=lower(GOOD, [1, 2, 2])
    )
    assert holds(part) == {0: UNKNOWN, 1: UNKNOWN, 2: UNKNOWN, 3: "yes", 4: "in part", 5: UNKNOWN}
    assert holds(made_up(super=[{"FF": 80}])) == {0: UNKNOWN, 1: UNKNOWN, 2: UNKNOWN, 3: UNKNOWN, 5: UNKNOWN}


def test_differences_are_paired_by_seed():
    results = made_up(adn=GOOD, super=[{"FF": 79}, {"FF": 80}, {"FF": 81}])
    results["runs"] = [run for run in results["runs"] if (run["method"], run["seed"]) != ("super", 1)]
    difference = Accuracies(results["runs"], "made-up").difference("", ("adn", "FF"), ("super", "FF"))
    assert difference.values == (1, 1)


def test_the_report_holds_the_numbers_and_is_put_between_its_markers(tmp_path):
    pytest.importorskip("matplotlib")
    results = made_up(adn=GOOD, super=[{"FF": 79.5}] * 3, labels=lower(GOOD, [1, 2, 2]), adn_features=GOOD)
    text = report.markdown([results], "pictures")
    assert "81.00 ± 1.00" in text
    assert "+1.50 ± 1.00" in text
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- reproduce:begin -->\nold\n<!-- reproduce:end -->\nafter\n")
    put(readme, report.SECTION, text)
    assert section(readme, report.SECTION) == text
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")
    named = set(re.findall(r"pictures/(\S+\.png)", text))
    assert {path.name for path in drawings.draw(results, "made-up", tmp_path)} == named
    readme.write_text("no markers")
    with pytest.raises(UserError, match="has no section reproduce"):
        put(readme, report.SECTION, text)


@pytest.mark.parametrize("grid", [FULL, QUICK])
def test_the_grids_are_what_the_command_takes(grid):
    runs = grid.runs()
    assert len({run.name for run in runs}) == len(runs)
    assert len(grid.seeds) >= verdicts.FEWEST
    for run in runs:
        parser().parse_args(run.training)
        parser().parse_args([*run.testing, "--weights", "some"])


def test_a_run_killed_and_a_grid_stopped_go_on(tmp_path):
    """Every command is real: the first is killed after an epoch, the next grid has no time, the third finishes."""
    run = Run(TINY, "adn", 5)
    place = tmp_path / run.name
    first = Executor(tmp_path, jobs=1)
    killer = threading.Thread(target=kill_after_an_epoch, args=(first, place / "checkpoint.pth"))
    killer.start()
    with pytest.raises(Failed, match="exit code -9"):
        first.execute([run])
    killer.join()
    assert not Executor(tmp_path, jobs=1, deadline=time.monotonic()).execute([run])
    assert not finished(tmp_path, run)
    assert Executor(tmp_path, jobs=1).execute([run])
    assert "Resumed" in (place / LOG).read_text()
    assert not list(place.glob("*.pth"))
    assert Executor(tmp_path, jobs=1, deadline=time.monotonic()).execute([run])  # nothing left to do

    written = collect.collect(GRID, tmp_path, tmp_path / "results", "a command")
    [results] = collect.read(tmp_path / "results")
    assert (len(results["runs"]), results["planned"]) == (1, 2)
    [result] = results["runs"]
    assert len(result["subnets"]) == 2**3  # this network has three stages
    assert all(row["top1"] > 0 and row["gmacs"] > 0 for row in result["subnets"].values())
    assert result["epochs"] == 3
    assert result["seconds"]["cpu"] > 0
    assert str(tmp_path) not in written.read_text()
    assert str(ROOT) not in written.read_text()


def kill_after_an_epoch(executor: Executor, checkpoint: Path) -> None:
    end = time.monotonic() + 300
    while not checkpoint.exists() and time.monotonic() < end:
        time.sleep(0.05)
    for pid in executor.active:
        os.kill(pid, signal.SIGKILL)


def test_steps_are_timed_as_the_command_makes_them():
    timed = measure(TINY, 0, "cpu", Effort(warm_up=1, at_least=3, at_most=3, seconds=1))
    assert {method: len(times) for method, times in timed["milliseconds"].items()} == {"adn": 3, "base": 3}
    assert min(timed["milliseconds"]["adn"] + timed["milliseconds"]["base"]) > 0


def test_the_command_plans_and_says_what_is_wrong(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "reproduce.py")]
    planned = subprocess.run(
        [*command, "--quick", "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert planned.stdout.count("to do ") == len(QUICK.runs())
    assert "QUICK" in planned.stdout
    assert reproduce.main(["--report", "--results", str(tmp_path)]) == 2


def test_readme_and_results_agree():
    """No number of the README is typed by hand: it is what the report makes of the results files."""
    grids = collect.read(ROOT / "results")
    assert grids
    assert section(ROOT / "README.md", report.SECTION) == report.markdown(grids, "results")


def test_results_say_what_made_them_and_nothing_of_the_machine():
    for results in collect.read(ROOT / "results"):
        for run in results["runs"]:
            assert run["command"].startswith("python train_adn.py --model")
            assert {"seed", "epochs", "subnets", "seconds", "versions", "machine"} <= run.keys()
        assert not re.search(r'"/(home|root|tmp|work|usr)/', json.dumps(results))
