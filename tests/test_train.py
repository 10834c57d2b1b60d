"""The command as a user meets it: the recipes, every precision, a run that learns, and mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_adn
from tests.launch import ENVIRONMENT, ROOT, launch
from tests.pictures import image_folder
from tests.recipes import arguments, commands

SMALL = "--train-crop-size 32 --val-resize-size 32 --val-crop-size 32 --workers 0 --epochs 1 --batch-size 4"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data"), train=4, val=2)


@pytest.fixture
def run(data, tmp_path, capfd):
    """Run the command in this process: its exit code, what it said, and on stderr."""

    def run(flags: str, *more: object) -> tuple[int, str, str]:
        paths = ["--data-path", str(data), "--output-dir", str(tmp_path / "out")]
        capfd.readouterr()
        try:
            code = train_adn.main(["--model", "mobilenet_v2", *paths, *SMALL.split(), *flags.split(), *map(str, more)])
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("recipe", commands("training"), ids=lambda line: line.split("--model ")[1].split()[0])
def test_a_recipe_trains(recipe, processes, data, tmp_path):
    """Only paths, processes, epochs, batch and number of images are other than in the README."""
    flags = arguments(recipe, {"data path": data, "checkpoint": tmp_path})
    if "--output-dir" not in flags:
        flags += ["--output-dir", str(tmp_path)]
    flags += ["--epochs", "1", "--batch-size", "2", "--workers", "0"]
    done = launch("train_adn.py", *flags, processes=processes)
    assert done.returncode == 0, done.stderr
    assert "Test:" in done.stdout
    assert "Acc@5 100.000" in done.stdout  # of two classes
    steps = [line for line in metrics(tmp_path) if line["event"] == "step"]
    assert steps[-1]["step"] == 4 // processes
    assert {"checkpoint.pth", "model_0.pth", "best.pth", "run.json"} <= {path.name for path in tmp_path.iterdir()}
    shutil.rmtree(tmp_path)  # gigabytes in all


def test_the_bundled_digits_are_learnt_by_both_networks(tmp_path):
    flags = "--data-path digits --opt adamw --lr 0.002 --wd 0.05 --epochs 5 --lr-scheduler cosineannealinglr"
    done = launch("train_adn.py", *flags.split(), "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    last = metrics(tmp_path)[-1]
    assert last["top1_super"] > 90
    assert last["top1_base"] > 90


def test_every_precision_trains_the_same_network(run, tmp_path):
    losses = {}
    for precision in ("", "--amp --amp-dtype bf16", "--amp --amp-dtype fp16"):
        code, _, stderr = run(f"--lr 0.01 --model resnet18 --print-freq 1 {precision}")
        assert code == 0, stderr
        losses[precision] = [line["loss_super"] for line in metrics(tmp_path / "out") if line["event"] == "step"][-2]
        saved = torch.load(tmp_path / "out/checkpoint.pth", weights_only=False)
        assert ("scaler" in saved) == ("fp16" in precision)
        assert all(tensor.dtype == torch.float32 for tensor in saved["model"].values() if tensor.is_floating_point())
    assert list(losses.values()) == pytest.approx([losses[""]] * 3, rel=0.05)
    assert len(set(losses.values())) == 3  # rounded differently, so really other arithmetic


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["", "--amp --amp-dtype bf16", "--amp --amp-dtype fp16", "--torch-compile --amp"])
def test_every_precision_trains_on_a_gpu(run, tmp_path, precision):
    code, _, stderr = run(f"--device cuda --lr 0.01 --clip-grad-norm 1 --model-ema {precision}")
    assert code == 0, stderr
    assert "memory_mb" in metrics(tmp_path / "out")[0]


FLAGS_THAT_WORK = {
    "opt": "--opt rmsprop --lr 0.001",
    "nesterov": "--opt sgd_nesterov --lr-scheduler exponentiallr --lr-gamma 0.9",
    "adamw": "--opt adamw --lr-scheduler steplr --lr-step-size 1 --lr-warmup-epochs 1 --lr-warmup-method linear",
    "accumulate": "--grad-accum 3 --batch-size 1 --train-crop-size 64",
    "features": "--fpn --subpath-temp 2 --subpath-topk 0",
    "no distillation": "--no-distillation --no-switchable-norms",
    "individual": "--method individual --skip-cfg TTTTT",
    "deterministic": "--deterministic --no-channels-last --sync-bn",
    "checkpoints": "--checkpoint-steps 1 --cache-dataset",
}


@pytest.mark.parametrize("flags", FLAGS_THAT_WORK.values(), ids=FLAGS_THAT_WORK)
def test_flags_work(run, tmp_path, monkeypatch, flags):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, _, stderr = run(flags)
    assert code == 0, stderr


def test_a_plain_network_is_a_start(run, tmp_path):
    import torchvision

    plain = torchvision.models.resnet18(num_classes=2)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    code, _, stderr = run("--lr 0 --model resnet18 --init-from", tmp_path / "plain.pth")
    assert code == 0, stderr
    saved = torch.load(tmp_path / "out/checkpoint.pth", weights_only=False)["model"]
    for name, parameter in plain.named_parameters():
        assert torch.equal(saved[name], parameter)
    assert torch.equal(saved["layer1.0.bn1_skip.weight"], plain.layer1[0].bn1.weight)


MISTAKES = {
    "--model resnet05": "resnet50",
    "--opt sdg": "sgd",
    "--lr-scheduler cosine": "cosineannealinglr",
    "--auto-augment ta_wide2": "ta_wide",
    "--interpolation cubic": "bicubic",
    "--lr -1": "--lr",
    "--lr ten": "--lr",
    "--batch-size 0": "--batch-size",
    "--epoch 3": "--epochs",
    "--val-crop-size 300": "--val-resize-size",
    "--device cuda": "--device cpu",
    "--device gpu": "cuda",
    "--data-path /nowhere": "/nowhere",
    "--data-path /proc/self": "val",
    "--resume /nowhere/checkpoint.pth": "/nowhere/checkpoint.pth",
    "--init-from IMAGENET1K_V9": "IMAGENET1K_V9",
    "--ra-reps 4": "--ra-sampler",
    "--ra-magnitude 5": "--auto-augment ra",
    "--augmix-severity 5": "--auto-augment augmix",
    "--model-ema-steps 4": "--model-ema",
    "--amp-dtype fp16": "--amp",
    "--lr-multi-steps 3 4": "multisteplr",
    "--lr-min 0.1": "cosineannealinglr",
    "--lr-warmup-method linear": "--lr-warmup-epochs",
    "--method individual --fpn": "self-distillation",
    "--method individual --no-distillation": "--method adn",
    "--method individual --skip-cfg TF": "--skip-cfg",
    "--method individual --skip-cfg all": "one network",
    "--skip-cfg TTTTT": "--method individual",
    "--momentum 0.5 --opt adamw": "sgd",
    "--start-epoch 1 --resume auto": "--resume",
    "--world-size 4": "--world-size",
    "--dist-url tcp://host:1": "torchrun",
    "--output-dir /proc/none": "/proc/none",
    "--model vit_b_16 --sync-bn": "--sync-bn",
    "--model vit_b_16 --patch-size 5": "vit_b_16",
    "--model swin_t --stem small": "stem",
}


@pytest.mark.parametrize(("flags", "word"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(run, flags, word):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, stderr = run(flags)
    assert code == 2
    assert "Traceback" not in stderr
    (line,) = stderr.splitlines()
    assert word in line


def test_tensorboard_works_or_is_said_to_be_missing(run, tmp_path):
    code, _, stderr = run("--tensorboard")
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        assert code == 2
        assert "pip install tensorboard" in stderr
    else:
        assert code == 0
        assert list((tmp_path / "out").glob("events.*"))


def test_a_corrupt_image_is_named_or_passed_over_and_counted(run, data, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    (broken / "train/cat/0.JPEG").write_bytes(b"\xff\xd8 no image")
    code, _, stderr = run("--data-path", broken)
    assert code == 2
    assert str(broken / "train/cat/0.JPEG") in stderr
    code, stdout, stderr = run("--on-corrupt skip --data-path", broken)
    assert code == 0, stderr
    assert "1 corrupt" in stdout.splitlines()[-1]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(run, tmp_path):
    assert run("--lr 0.01")[0] == 0
    good = (tmp_path / "out/checkpoint.pth").read_bytes()
    state = torch.load(tmp_path / "out/checkpoint.pth", weights_only=False)
    for group in state["optimizer"]["param_groups"]:
        group["lr"] = 1e30
    state["lr_scheduler"]["base_lrs"] = [1e30] * len(state["optimizer"]["param_groups"])
    torch.save(state, tmp_path / "wild.pth")
    code, _, stderr = run("--print-freq 1 --epochs 3 --resume", tmp_path / "wild.pth")
    assert code == 2
    assert "not finite" in stderr
    assert json.loads((tmp_path / "out/diagnostic.json").read_text())["epoch"] == 1
    assert (tmp_path / "out/checkpoint.pth").read_bytes() == good


def test_help_needs_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "train_adn.py", "--help"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "argparse" in done.stderr
    assert "| torch\n" not in done.stderr  # it takes seconds
    assert done.stdout.count("--") > 60
    assert "(default: 0.99998)" in done.stdout


def test_a_batch_norm_with_a_single_value_is_explained(run):
    code, _, stderr = run("--model resnet18 --batch-size 1 --grad-accum 1 --train-crop-size 32")
    assert code == 2
    assert stderr.splitlines()[-1].startswith("train_adn.py: error: --batch-size 1: a batch norm has but one value")


def test_processes_report_a_mistake_once(data, tmp_path):
    flags = ["--data-path", data, "--output-dir", tmp_path, *SMALL.split(), "--model"]
    done = launch("train_adn.py", *flags, "nonesuch", processes=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("train_adn.py: error")]
    assert len(lines) == 1
    assert done.returncode != 0
    argument = launch("train_adn.py", *flags, "resnet18", "--lr", "-3", processes=2)
    lines = [line for line in argument.stderr.splitlines() if line.startswith("train_adn.py: error")]
    assert len(lines) == 1


def test_a_mistake_that_one_process_meets_is_reported_once(data, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    (broken / "train/cat/0.JPEG").write_bytes(b"\xff\xd8 no image")
    flags = ["--model", "mobilenet_v2", *SMALL.split(), "--data-path", broken, "--output-dir", tmp_path / "out"]
    done = launch("train_adn.py", *flags, processes=2)
    assert done.returncode != 0
    assert done.stderr.count("train_adn.py: error") == 1
    assert "cannot decode" in done.stderr
    assert "[rank" not in done.stderr  # no traceback of the process that lost its partner


def test_a_run_leaves_its_arguments_versions_and_commit(run, tmp_path):
    assert run("--seed 5")[0] == 0
    content = json.loads((tmp_path / "out/run.json").read_text())
    assert content["args"]["seed"] == 5
    assert content["versions"]["torch"] == str(torch.__version__)
    if (ROOT / ".git").exists() and shutil.which("git"):
        assert content["git_commit"]
    assert np.isfinite(metrics(tmp_path / "out")[-1]["top1_super"])
    assert os.path.getsize(tmp_path / "out/metrics.jsonl") > 0
