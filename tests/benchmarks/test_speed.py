"""The benchmark, really run on tiny settings. What it measures is not judged here, only that and how it says it."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.speed.__main__ import main
from benchmarks.speed.results import ALL, INPUT, LATENCY, STEP, SWITCHING, Group, Results, markdown

ROOT = Path(__file__).parents[2]
TINY = "--model resnet20 --pixels 32 --batch 2 --rounds 2 --device cpu"


def benchmark(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, "-m", "benchmarks.speed", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess, Path]:
    file = tmp_path_factory.mktemp("benchmark") / "new folder" / "speed-cpu.json"
    return benchmark(*TINY.split(), "--json", file), file


@pytest.fixture(scope="module")
def content(run: tuple[subprocess.CompletedProcess, Path]) -> dict:
    process, file = run
    assert process.returncode == 0, process.stderr
    return json.loads(file.read_text())


def test_json_has_machine_settings_and_every_sample(content: dict):
    assert content["machine"]["device"] == "cpu"
    assert {"name", "versions", "allocator"} <= set(content["machine"])
    for group in content["groups"]:
        assert group["batch"] in (1, 2)
        assert group["about"].get("pixels", 32) == 32
        assert {len(samples) for samples in group["samples"].values()} == {2}
        assert min(itertools.chain(*group["samples"].values())) > 0


def test_every_part_is_measured_beside_what_it_is_compared_with(content: dict):
    ways = {(group["part"], group["case"], group["batch"]): set(group["samples"]) for group in content["groups"]}
    flags = {"".join(flags) for flags in itertools.product("FT", repeat=3)}
    assert ways == {
        (STEP, "resnet20", 2): {"alone", "ours", "ours fp32", "reference fp32"},
        (LATENCY, "resnet20", 2): {*flags, "plain"},
        (LATENCY, "resnet20", 1): {*flags, "plain"},
        (SWITCHING, "resnet20", 1): {"sorted", "alternating"},
        (ALL, "resnet20", 2): {"separate runs", "one walk"},
        **{(INPUT, kind, 2): {"classic", "ours, pil", "ours, tensor"} for kind in ("train plain", "train ta_wide")},
        (INPUT, "evaluation", 2): {"classic", "ours, pil", "ours, tensor"},
    }


def test_the_page_is_made_of_the_file_alone(run: tuple, content: dict):
    process, file = run
    assert benchmark("--report", "--results", file.parent).returncode == 0
    page = file.with_name("speed.md").read_text()
    assert page == process.stdout.removesuffix("\n")
    assert page.count("not measured") == 4  # the goals of other networks on this device
    assert page.count("| needs cuda |") == 8


def test_ratios_come_from_the_samples():
    made = Group(STEP, "m", 1, {"a": [2.0, 40.0, 6.0], "b": [1.0, 10.0, 2.0]})
    assert made.ratio("a", "b") == (2.5, 3.0, 3.5)
    assert made.ratio("b", "a")[1] == 1 / 3


def of_a_gpu(ours: float, peak: int, processes: int = 1) -> Results:
    samples = {"alone": [100.0] * 3, "ours": [ours] * 3, "ours fp16": [ours] * 3}
    samples |= {"reference fp16": [250.0] * 3, "reference fp32": [400.0] * 3}
    memory = {"ours fp16": peak, "reference fp16": 100}
    group = Group(STEP, "resnet50", 256, samples, memory=memory, about={"processes": processes})
    return Results({"device": "cuda", "name": "a GPU", "versions": "", "allocator": {"MALLOC_X": "1"}}, [group])


@pytest.mark.parametrize(("ours", "peak", "reached"), [(100.0, 99, "yes"), (170.0, 101, "**no**")])
def test_every_goal_of_a_step_can_be_reached_and_missed(ours: float, peak: int, reached: str):
    page = markdown([of_a_gpu(ours, peak)])
    rows = [line for line in page.splitlines() if "| resnet50 |" in line and "(" in line]
    assert len(rows) == 5
    assert all(line.endswith(f"| {reached} |") for line in rows)
    assert "allocator: MALLOC_X=1" in page


def test_a_run_of_two_processes_is_no_answer_to_a_goal_of_one():
    assert "**no**" not in markdown([of_a_gpu(170.0, 101, processes=2)])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--parts speed", "invalid choice: 'speed'"),
        ("--batch 0", "--batch"),
        ("--report --results tests", "no speed-*.json there"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments: str, word: str):
    process = benchmark(*arguments.split())
    assert process.returncode == 2
    assert word in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


def test_an_unknown_network_is_a_mistake_too(capsys: pytest.CaptureFixture):
    assert main(["--device", "cpu", "--parts", "all", "--model", "resnet5"]) == 2
    assert "--model resnet5: unknown model 'resnet5'; did you mean" in capsys.readouterr().err.splitlines()[-1]


def test_help_and_page_do_without_torch(run: tuple):
    program = (
        "import sys; from benchmarks.speed.__main__ import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program, "--report", "--results", str(run[1].parent)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_two_processes_average_gradients_on_both_sides(tmp_path: Path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    file = tmp_path / "two.json"
    process = benchmark(*TINY.split(), "--parts", "step", "--json", file, launcher=launcher)
    assert process.returncode == 0, process.stderr
    [group] = json.loads(file.read_text())["groups"]
    assert group["about"]["processes"] == 2
    assert set(group["samples"]) == {"alone", "ours", "ours fp32", "reference fp32"}
    assert process.stdout.count("# Speed") == 1
