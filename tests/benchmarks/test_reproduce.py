"""The evidence: verdicts on hand-made numbers, the page made of them, a tiny grid killed, stopped and continued."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import methods
from benchmarks.reproduce import __main__ as command
from benchmarks.reproduce import page, systems
from benchmarks.reproduce.costs import blocks_of, calls_of
from benchmarks.reproduce.grids import GRIDS, METHODS, Grid, Method, Run, Setting
from benchmarks.reproduce.page import BETTER, SAME, UNKNOWN, WORSE, Claim, Outcome
from benchmarks.reproduce.runner import Runner
from utils.errors import UserError
from utils.files import write_json
from utils.flags.arguments import parser

ROOT = Path(__file__).parents[2]
METHODS["smaller"] = Method("ADN at {sizes[1]}", "super", None, "--val-crop-size {sizes[1]}", after="adn")
TINY = Setting(
    "tiny",
    ("adn", "smaller"),
    "--model resnet20 --data-path digits --val-resize-size 16 --val-crop-size 16 --workers 0",
    "--train-crop-size 16 --train-images 240 --val-images 50 --batch-size 60",
    3,
    "16 12",
)


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
    return {"grid": "made-up", "note": "a test", "planned": len(runs), "runs": runs}


def adn(super_net: float, base_net: float, early: float, late: float) -> dict[str, float]:
    return {"FF": super_net, "TF": early, "FT": late, "TT": base_net}


GOOD = [adn(80, 76, 79, 78), adn(81, 77, 80, 79), adn(82, 78, 81, 80)]


def lower(rows: list[dict[str, float]], by: list[float]) -> list[dict[str, float]]:
    return [{name: value - less for name, value in row.items()} for row, less in zip(rows, by, strict=True)]


def verdicts(results: dict) -> dict[str, str]:
    """Of the premise and of the five claims, by their first letter."""
    found: dict[str, set[str]] = {}
    for claim in Outcome(results["runs"]).claims():
        if claim.wanted:
            found.setdefault(claim.text[0], set()).add(claim.verdict.split(":")[0])
    return {number: " ".join(words) for number, words in found.items()}


@pytest.mark.parametrize(
    ("values", "difference"),
    [
        ([1.0, 1.2, 1.1], BETTER),
        ([-1.0, -1.2, -1.1], WORSE),
        ([1.0, -1.0, 0.5], SAME),
        ([2.0, 0.0, 1.0], SAME),  # as large as its spread
        ([5.0, 5.1], UNKNOWN),
        ([], UNKNOWN),
    ],
)
def test_a_difference_counts_when_it_exceeds_its_spread(values: list[float], difference: str):
    assert Claim("", "", values, ()).verdict == difference


def test_every_claim_can_hold_and_fail(tmp_path: Path):
    alone = {"super": [{"FF": row["FF"] - 1} for row in GOOD], "base": [{"TT": row["TT"] - 1} for row in GOOD]}
    good = made_up(adn=GOOD, **alone, labels=lower(GOOD, [1, 2, 2]), shared_norms=lower(GOOD, [2, 2, 1]))
    assert verdicts(good) == dict.fromkeys("P12345", "holds")

    alone = {"super": [{"FF": row["FF"] + 1} for row in GOOD], "base": [{"TT": row["TT"] + 6} for row in GOOD]}
    sagging = [{**row, "FT": row["TT"] - 3 - 0.1 * seed} for seed, row in enumerate(GOOD)]
    rest = {"labels": sagging, "shared_norms": lower(sagging, [-1, -1, -2])}
    bad = made_up(adn_seconds=190, adn=sagging, **alone, **rest)
    assert verdicts(bad) == dict.fromkeys("P12345", "**does not hold**")


def test_two_seeds_are_no_answer():
    assert verdicts(made_up(adn=GOOD[:2], super=[{"FF": 70}] * 2)) == dict.fromkeys("P13", UNKNOWN)


def test_differences_are_paired_by_seed():
    results = made_up(adn=GOOD, super=[{"FF": 79}, {"FF": 70}, {"FF": 81}])
    results["runs"] = [run for run in results["runs"] if (run["method"], run["seed"]) != ("super", 1)]
    first = next(claim for claim in Outcome(results["runs"]).claims() if claim.text.startswith("1."))
    assert first.values == [1, 1]


def test_the_page_holds_the_numbers_and_the_pictures(tmp_path: Path):
    pytest.importorskip("matplotlib")
    results = made_up(adn=GOOD, super=[{"FF": 79.5}] * 3, base=[{"TT": 80.0}] * 3, labels=lower(GOOD, [1, 2, 2]))
    (tmp_path / "made-up.json").write_text(json.dumps(results))
    (tmp_path / "speed-cpu.json").write_text('{"groups": []}')  # lies beside it, and is none of these
    text = page.write(tmp_path, "systems").read_text()
    assert "| ADN | 3 | 81.00 ± 1.00 | 77.00 ± 1.00 | 79.00 ± 1.00 | 1.50 ± 0.00 |" in text
    assert "| adn FF − super FF | +1.50 ± 1.00 | holds: better |" in text
    assert "| ADN | +1.50 ± 1.00 | **-3.00 ± 1.00** | **-2.73 ± 0.64** |" in text
    assert "| ADN without self-distillation | -0.17 ± 0.58 | **-4.67 ± 0.58** | **-3.20 ± 0.00** |" in text
    for run in results["runs"]:
        for row in run["subnets"].values():
            row["calibrated"] = row["top1"] + (3 if run["method"] == "base" else 0.5)
    (tmp_path / "made-up.json").write_text(json.dumps(results))
    text = page.write(tmp_path, "systems").read_text()
    assert "| ADN | 3 | 81.00 ± 1.00 | 81.50 ± 1.00 | 77.00 ± 1.00 | 77.50 ± 1.00 | 79.00 ± 1.00 |" in text
    assert (
        "| adn TT − base TT | -3.00 ± 1.00 | **does not hold**: worse | -5.50 ± 1.00 | **does not hold**: worse" in text
    )
    assert "The premise is not met" in text
    assert [(tmp_path / name).exists() for name in re.findall(r"\((\S+\.png)\)", text)] == [True]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_grids_are_what_the_command_takes(grid: Grid):
    assert len({run.name for run in grid.runs}) == len(grid.runs)
    assert {run.seed for run in grid.runs} == {0, 1, 2}
    for run in grid.runs:
        for purpose in run.purposes:
            parser(methods).parse_args([*run.flags(purpose), "--weights", "some"])


def test_a_run_killed_stops_the_others(tmp_path: Path):
    runner = Runner(tmp_path)
    killer = threading.Thread(target=kill_at_once, args=(runner,))
    killer.start()
    with pytest.raises(UserError, match="exit code -9"):
        runner.execute([Run(TINY, "adn", 5), Run(TINY, "adn", 6)])
    killer.join()
    assert [place.name for place in tmp_path.iterdir()] == [Run(TINY, "adn", 5).name]


def test_a_grid_stopped_goes_on(tmp_path: Path):
    """Every command is real: the grid is stopped after an epoch of training, then it finishes."""
    place = tmp_path / "tiny" / Run(TINY, "adn", 5).name
    program = "import sys; from tests.benchmarks.test_reproduce import tiny_grid; sys.exit(tiny_grid(sys.argv[1:]))"
    flags = ["tiny", "--work-dir", str(tmp_path), "--results", str(tmp_path / "results"), "--", "--device", "cpu"]
    grid = subprocess.Popen([sys.executable, "-c", program, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for((place / "checkpoint.pth").exists)
    grid.send_signal(signal.SIGALRM)  # as --time-limit does
    assert "0 of 2 runs" in grid.communicate()[0]
    assert grid.returncode == 75
    assert (place / "checkpoint.pth").exists()

    grid = subprocess.run([sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "2 of 2 runs" in grid.stdout
    assert "Resumed" in (place / "log.txt").read_text()
    assert [path.name for path in place.glob("*.pth")] == ["checkpoint.pth"]
    text = (tmp_path / "results" / "tiny.json").read_text()
    result, smaller = json.loads(text)["runs"]
    assert smaller["subnets"]["FFF"]["gmacs"] < result["subnets"]["FFF"]["gmacs"]  # the same weights, tested at 12
    assert smaller["seconds"]["cpu"] == 0
    assert "--test-only" in smaller["command"]
    assert len(result["subnets"]) == 2**3  # this network has three stages
    assert all(row.keys() == {"top1", "calibrated", "gmacs"} for row in result["subnets"].values())
    assert any(row["top1"] != row["calibrated"] for row in result["subnets"].values())
    assert result["command"].startswith("python train_adn.py --model resnet20")
    assert result["seconds"]["cpu"] > 0
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
    elsewhere = [*flags[:2], str(tmp_path / "elsewhere"), *flags[3:5], "--dry-run"]
    assert [line.split()[0] for line in plan(program, *elsewhere)] == ["to"] * 2
    assert [line.split()[0] for line in plan(program, *elsewhere, "--keep")] == ["done"] * 2
    write_json(tmp_path / "results" / "tiny.json", {"runs": [result]})
    assert [line.split()[0] for line in plan(program, *elsewhere, "--keep")] == ["to"] * 2, "its weights are wanted"


def plan(program: str, *flags: str) -> list[str]:
    command = [sys.executable, "-c", program, *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def tiny_grid(argv: list[str]) -> int:
    """The command, with one grid more."""
    GRIDS["tiny"] = Grid("a test", TINY, seeds=(5,))
    return command.main(argv)


def kill_at_once(runner: Runner) -> None:
    wait_for(lambda: bool(runner.active))
    for pid in list(runner.active):
        os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def of_systems(**subnets: list[dict[str, tuple[float, float, float]]]) -> dict:
    """For each method, seed by seed: cost, raw and calibrated accuracy of what it was tested in."""
    runs = [
        {
            "setting": "digits",
            "method": method.replace("_", "-"),
            "seed": seed,
            "subnets": {
                name: dict(zip(("gmacs", "top1", "calibrated"), row, strict=True)) for name, row in rows.items()
            },
        }
        for method, seeds in subnets.items()
        for seed, rows in enumerate(seeds)
    ]
    return {"grid": "systems", "note": "a test", "planned": 99, "runs": runs}


def test_the_page_of_systems_compares_at_the_same_cost(tmp_path: Path):
    pytest.importorskip("matplotlib")
    less = [0.0, 0.2, -0.2]
    results = of_systems(
        plain=[{"FFF": (0.004, 90, 90 + by)} for by in less],
        adn=[{"FFF": (0.004, 90, 90), "TTT": (0.002, 85, 88 + by)} for by in less],
        sandwich=[{"1.0": (0.004, 91, 91), "0.5": (0.002, 10, 86), "0.35": (0.001, 80, 80)} for _ in less],
        sandwich_labels=[{"1.0": (0.004, 91, 91), "0.5": (0.002, 10, 87), "0.35": (0.001, 79, 79)} for _ in less],
        dsnet=[{"largest": (0.004, 90, 90), "smallest": (0.002, 80, 80)} for _ in less],
        gate=[{"gate": (0.003, 87, 87)} for _ in less],
        gate_corrected=[{"gate": (0.0025, 82, 82)} for _ in less],
    )
    (tmp_path / "systems.json").write_text(json.dumps(results))
    text = systems.write(tmp_path).read_text()
    bad = "**does not hold**: worse"
    assert f"| gate-corrected − dsnet at its MACs | -0.50 ± 0.00 | {bad} | -0.50 ± 0.00 | {bad} |" in text
    assert f"| sandwich 0.5 − (raw + 10) | -10.00 ± 0.00 | {bad} | +66.00 ± 0.00 | holds: better |" in text
    assert (
        f"| sandwich 0.5 − sandwich-labels | +0.00 ± 0.00 | **does not hold**: no difference | -1.00 ± 0.00 | {bad} |"
        in text
    )
    assert "| adn TTT − sandwich at its MACs | +75.00 ± 0.00 | better | +2.00 ± 0.20 | better |" in text
    assert "| adn FFF − plain | +0.00 ± 0.00 | holds: no difference | +0.00 ± 0.20 | holds: no difference |" in text
    assert "| DS-Net | gate | 3.00 | 87.00 ± 0.00 | 87.00 ± 0.00 |" in text
    assert (tmp_path / "systems-digits.png").exists()
    costs = {"machine": {"name": "an abacus"}, "setting": "digits", "steps": {"plain": [1, 2, 3], "adn": [2, 4, 3]}}
    calls = [{"method": "adn", "subnet": "TTT", "batch": 1, "ms": 1.5, "joules_per_image": 0.25}]
    seen = {"changes": {"super-net": {"1": [None, 0.25]}}, "cosine": {"1": 0.75}}
    content = {**costs, "calls": calls, "blocks": {"adn": {"0": seen, "1": seen}}}
    (tmp_path / systems.COSTS).write_text(json.dumps(content))
    text = systems.write(tmp_path).read_text()
    assert "| ADN | TTT | 2.00 | 85.00 ± 0.00 | 88.00 ± 0.20 | 1.50 |  | 250.00 | 2.00 (1.50 to 2.00) |" in text
    assert "| ms, 1 | ms, 64 | mJ, 1 | step |" in text
    assert "| ADN | 0.25 ± 0.00 | 0.75 ± 0.00 |" in text


def test_a_run_s_network_is_asked_about_real_images(digits_run: Path, tmp_path: Path):
    run = Run(TINY, "adn", 5)
    with pytest.raises(UserError, match="trains it"):
        calls_of(run, tmp_path, 2)
    (tmp_path / run.name).symlink_to(digits_run)
    with pytest.raises(UserError, match="tiny-gate-5"):  # not what it started from
        calls_of(run._replace(method="gate"), tmp_path, 2)
    calls = calls_of(run, tmp_path, 2)
    assert len(calls) == 2**3
    calls["TTT"]()
    found = blocks_of(run, tmp_path)
    assert found["cosine"].keys() == {"1", "2", "3"}
    assert len(found["changes"]["super-net"]["2"]) > len(found["changes"]["base-net"]["2"])


def test_the_command_plans_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert command.main(["quick", "--dry-run", "--work-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("to do ") == len(GRIDS["quick"].runs)
    assert command.main(["quick", "--dry-run", "--only", "swin_t-base-1", "resnet18-*-0"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == [
        "swin_t-base-1",
        *(f"resnet18-{method}-0" for method in ("adn", "super", "base")),
    ]
    assert command.main(["quick", "--only", "resnet18-*-3"]) == 2
    assert "the grid quick has no such run" in capsys.readouterr().err
    assert command.main(["--report", "--results", str(tmp_path)]) == 2
    assert "no results of a grid there" in capsys.readouterr().err
    (tmp_path / "quick.json").write_text('{"runs": [')
    assert command.main(["quick", "--keep", "--results", str(tmp_path), "--work-dir", str(tmp_path)]) == 2
    assert "quick.json is not a results file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        command.main(["slow"])
    assert left.value.code == 2


def test_results_say_what_made_them_and_nothing_of_the_machine():
    text = (ROOT / "results" / "quick.json").read_text()
    for run in json.loads(text)["runs"]:
        assert run["command"].startswith("python train_adn.py --model")
        assert {"seed", "subnets", "seconds", "versions", "machine"} <= run.keys()
    assert not re.search(r'"/(home|root|tmp|work|usr)/', text)
