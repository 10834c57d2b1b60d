"""The benchmark, really run on tiny settings. What it measures is not judged here, only that and how it says it."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = "--model resnet50 --image-size 32 --batch-size 2 --eval-batch 2 --rounds 2 --input-images 2 --device cpu"


def benchmark(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.benchmark", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess, Path]:
    file = tmp_path_factory.mktemp("benchmark") / "new folder" / "benchmark.json"
    return benchmark(*TINY.split(), "--json", file), file


@pytest.fixture(scope="module")
def content(run: tuple[subprocess.CompletedProcess, Path]) -> dict:
    process, file = run
    assert process.returncode == 0, process.stderr
    return json.loads(file.read_text())


def test_json_has_machine_settings_and_every_sample(content: dict):
    assert set(content) == {"machine", "settings", "groups", "skipped"}
    assert content["machine"]["device"] == "cpu"
    assert {"name", "torch", "torchvision", "python", "threads"} <= set(content["machine"])
    assert content["settings"]["batch_size"] == 2
    assert not content["skipped"]
    for group in content["groups"]:
        counts = {len(samples) for samples in group["samples"].values()}
        assert len(counts) == 1
        assert counts.pop() >= 2
        assert all(sample > 0 for samples in group["samples"].values() for sample in samples)


def test_every_part_is_measured_beside_what_it_is_compared_with(content: dict):
    names = {(group["title"], group["model"]): set(group["samples"]) for group in content["groups"]}
    flags = {"".join(flags) for flags in itertools.product("FT", repeat=4)}
    assert names["training step", "resnet50"] == {"ours", "plain alone", "ours fp32", "reference fp32"}
    assert names["latency", "resnet50"] == {*flags, "torchvision"}
    assert names["all sub-networks", "resnet50"] == {"tree", "separate runs", "reference's runs"}
    assert names["switching", "resnet50"] == {"alternating", "sorted"}
    assert names["latency, batch 1", "resnet50"] == {"FFFF eager", "TTTT eager"}
    assert {case for title, case in names if title == "input"} >= {"train plain", "train ta_wide", "evaluation"}
    assert names["input", "train plain"] == {"classic", "pil", "tensor"}


def test_report_judges_every_goal_of_this_machine_and_names_the_others(run: tuple, content: dict):
    process, file = run
    again = benchmark("--report", file)
    assert again.stdout == process.stdout
    rows = [line.split(" | ") for line in process.stdout.splitlines() if "| ≥" in line or "| ≤" in line]
    judged = {(row[0].removeprefix("| "), row[1]): row for row in rows}
    assert {model for _, model in judged} == {"resnet50", "vit_b_16", "swin_t", "train plain", "train ta_wide"}
    for (_, model), row in judged.items():
        missing = model in ("vit_b_16", "swin_t")
        assert ("not measured: not in this run" in row[4]) == missing
        assert (row[5].strip(" |") in ("yes", "**no**")) != missing
    assert "Goals of other machines" in process.stdout
    assert "needs one H200" in process.stdout


def test_ratios_come_from_the_samples(content: dict):
    group = next(g for g in content["groups"] if g["title"] == "training step")
    by_macs = group["macs"]["ours"] / group["macs"]["plain alone"]
    assert 1 < by_macs < 2
    from tools.bench.results import Group

    made = Group("step", "t", "m", 1, {"a": [2.0, 40.0, 6.0], "b": [1.0, 10.0, 2.0]}, macs={"a": 6, "b": 2})
    assert made.ratio("a", "b") == (2.5, 3.0, 3.5)
    assert made.by_macs("a", "b") == 3
    assert made.by_macs("a", "c") is None


def test_a_later_run_adds_to_the_file_and_replaces_what_it_measured_again():
    from tools.bench.results import Group, Results

    def results(skipped: dict, **samples: float) -> Results:
        groups = [Group("step", title, "m", 1, {"a": [value]}) for title, value in samples.items()]
        return Results({}, {}, groups, skipped)

    both = results({}, one=1.0, two=1.0).add_to(results({"two, m": "late", "three, m": "late"}, zero=0.0, one=0.0))
    assert {group.title: group.samples["a"] for group in both.groups} == {"zero": [0.0], "one": [1.0], "two": [1.0]}
    assert both.skipped == {"three, m": "late"}


def test_what_the_budget_leaves_out_is_said():
    process = benchmark(*TINY.split(), "--budget-minutes", 0, "latency")
    assert process.returncode == 0
    assert "Not measured: latency, resnet50 (the 0 minutes of --budget-minutes were over)" in process.stdout


def test_a_mistake_is_one_line():
    for arguments, word in ((["speed"], "unknown part 'speed'"), (["--report", "nowhere.json"], "no such file")):
        process = benchmark(*arguments)
        assert process.returncode == 2
        assert word in process.stderr.splitlines()[-1]
        assert "Traceback" not in process.stderr
