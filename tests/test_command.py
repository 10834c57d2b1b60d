"""The command across its rooms: what a file of weights says of itself, repeating a run, and nobody listening."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_adn
from tests.launch import ENVIRONMENT, ROOT, command, together
from tests.runs import metrics

DIGITS = (
    "--data-path digits --train-images 64 --val-images 20 --batch-size 16 --lr 0.01 --print-freq 1 --epochs 1 "
    "--train-crop-size 16 --val-resize-size 16 --val-crop-size 16 --workers 0 --device cpu"
)


@pytest.fixture(scope="module")
def individual(tmp_path_factory) -> Path:
    """The checkpoint of one network that was trained alone, with flags that shape it, and with an average."""
    folder = tmp_path_factory.mktemp("individual")
    flags = "--model resnet20 --method individual --skip-cfg TFT --no-switchable-norms --model-ema --output-dir"
    assert train_adn.main([*DIGITS.split(), *flags.split(), str(folder)]) == 0
    return folder / "checkpoint.pth"


def test_a_checkpoint_says_what_it_is_of_and_is_tested_so(individual, tmp_path, capsys):
    test = ["--test-only", "--data-path", "digits", "--device", "cpu", "--output-dir", str(tmp_path), "--weights"]
    assert train_adn.main([*test, str(individual)]) == 0
    said = capsys.readouterr().out
    assert "Test: TFT" in said
    assert "model resnet20" in said
    are = "not averaged (--model-ema takes their average), epoch 0, TFT trained"
    assert f", weights {individual}, " in said
    assert f", weights_are {are}, statistics of training, " in said
    assert train_adn.main([*test, str(individual), "--model-ema"]) == 0
    assert "weights_are averaged, epoch 0, TFT trained, statistics each sub-network's own" in capsys.readouterr().out
    assert train_adn.main([*test, str(individual), "--model", "resnet18"]) == 2
    assert "resnet20" in capsys.readouterr().err


def test_statistics_are_used_estimated_kept_or_left_out(digits_run, tmp_path, capsys):
    """The digits' networks in between are much better with statistics of their own."""
    raw, own = tmp_path / "raw.pth", tmp_path / "own.pth"
    trained = torch.load(digits_run / "checkpoint.pth", weights_only=False)
    del trained["statistics"]
    torch.save(trained, raw)
    test = f"--test-only --data-path digits --device cpu --skip-cfg all --latency-batch 0 --output-dir {tmp_path}"
    test += " --no-picture"

    def worst(*flags: str) -> float:
        assert train_adn.main([*test.split(), *flags]) == 0
        rows = json.loads((tmp_path / "subnets.json").read_text())["subnets"]
        return min(row["top1"] for row in rows)

    before = worst("--weights", str(raw))
    estimated = worst("--weights", str(raw), "--calibrate", "5", "--batch-size", "64", "--weights-out", str(own))
    assert estimated > before + 3
    assert "statistics each sub-network's own, estimated now" in capsys.readouterr().out
    assert worst("--weights", str(own)) == estimated
    assert worst("--weights", str(own), "--calibrate", "0") == before
    assert json.loads((tmp_path / "subnets.json").read_text())["statistics"] == "of training"
    more = ["--calibrate", "5", "--batch-size", "64", "--weights-out", tmp_path / "two.pth"]
    done = together("train_adn.py", *test.split(), "--weights", raw, *more, processes=2)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(path, weights_only=False)["statistics"]["model"] for path in (own, tmp_path / "two.pth"))
    for prefix, statistics in one.items():
        torch.testing.assert_close(two[prefix], statistics, rtol=1e-3, atol=1e-4)  # other threads, other sums
    predict = ["--predict", str(next((ROOT / "results").glob("*.png"))), "--device", "cpu", "--weights", str(own)]
    assert train_adn.main(predict) == 0


def test_the_end_of_a_training_estimates_statistics_and_a_longer_one_anew(tmp_path, capsys):
    train = [*DIGITS.split(), "--model", "resnet20", "--output-dir", str(tmp_path), "--resume", "auto"]
    assert train_adn.main(train) == 0
    assert "Test, calibrated: super" in capsys.readouterr().out
    first = torch.load(tmp_path / "checkpoint.pth", weights_only=False)["statistics"]["model"]
    assert first.keys() >= {"", "T", "TF", "TFT"}
    again = tmp_path / "again.pth"
    test = "--test-only --data-path digits --train-images 64 --batch-size 16 --calibrate 40 --no-picture --device cpu"
    paths = ["--weights", str(tmp_path / "checkpoint.pth"), "--weights-out", str(again), "--output-dir", str(tmp_path)]
    assert train_adn.main([*test.split(), *paths]) == 0  # it looks at images as the training did, by what the file says
    torch.testing.assert_close(torch.load(again, weights_only=False)["statistics"]["model"], first)
    assert train_adn.main(train) == 0  # nothing left, neither to train nor to estimate
    assert "nothing left to train" in capsys.readouterr().out
    assert train_adn.main([*train, "--epochs", "2"]) == 0
    second = torch.load(tmp_path / "checkpoint.pth", weights_only=False)["statistics"]["model"]
    name = "layer2.0.bn1.running_mean"
    assert not torch.equal(first["TF"][name], second["TF"][name])
    assert "statistics" not in torch.load(tmp_path / "model_0.pth", weights_only=False)


def test_a_run_is_repeated_from_its_run_json(individual, tmp_path):
    again = ["--from-run", str(individual.with_name("run.json")), "--device", "cpu", "--output-dir", str(tmp_path)]
    assert train_adn.main(again) == 0
    before, after = (torch.load(path, weights_only=False) for path in (individual, tmp_path / "checkpoint.pth"))
    assert all(torch.equal(after["model"][name], tensor) for name, tensor in before["model"].items())
    assert before["run"] != after["run"]


@pytest.mark.parametrize(
    ("content", "said"),
    {
        "": "not a run.json",
        '{"args": 3}': "not a run.json",
        '{"args": {"lr": "fast"}}': "lr 'fast'",
        '{"args": {"amp": 1}}': "amp 1",
        '{"args": {"method": "alchemy"}}': "method 'alchemy'",
        '{"args": {"epochs": 0}}': "epochs 0",
        '{"args": {"lr_multi_steps": 3}}': "lr_multi_steps 3",
        '{"args": {"draw": [0.5]}}': "draw [0.5]",
        '{"args": {"warp": 9}}': "warp 9",
    }.items(),
)
def test_a_run_json_that_is_none_is_refused_in_one_line(content, said, tmp_path, mistake):
    (tmp_path / "run.json").write_text(content)
    assert said in mistake(train_adn.main, "--from-run", tmp_path / "run.json")


def test_a_run_ends_well_though_nobody_reads_what_it_says(tmp_path):
    """As under `| head -1`, with an output that knows ASCII alone and a name that does not."""
    folder = tmp_path / "→"
    line = command("train_adn.py", *DIGITS.split(), "--model", "resnet20", "--output-dir", folder, "--epochs", 2)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=ROOT, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}, **pipes) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=100) == 0
    assert metrics(folder)[-1]["epoch"] == 1


def test_a_mistake_is_said_though_its_name_is_not_ascii(tmp_path, monkeypatch):
    said = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(said, "ascii", "backslashreplace"))  # as Python makes it
    shutil.copy(ROOT / "data/digits.npz", tmp_path / "→.npz")
    flags = ["--model", "resnet20", "--output-dir", str(tmp_path), "--resume", str(tmp_path / "→.npz")]
    assert train_adn.main([*DIGITS.split(), *flags]) == 2
    sys.stderr.flush()
    assert b"\\u2192.npz: not a whole torch file" in said.getvalue()
