"""Checkpoints: whole or not there, refused where they do not belong, read from the official code too."""

import argparse
import resource
import subprocess

import pytest
import torch

import models
import train_adn
from tests.launch import ENVIRONMENT, ROOT, command
from tests.pictures import image_folder
from utils.errors import UserError
from utils.train import checkpoint, optim

SMALL = (
    "--model mobilenet_v2 --train-crop-size 32 --val-resize-size 32 --val-crop-size 32 --workers 0 --batch-size 4 "
    "--model-ema --lr 0.01"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data"), train=4, val=2)


@pytest.fixture
def run(data, tmp_path, capfd):
    def run(flags: str, folder=tmp_path, data=data) -> tuple[int, str, str]:
        capfd.readouterr()
        paths = ["--data-path", str(data), "--output-dir", str(folder)]
        return train_adn.main([*SMALL.split(), *paths, *flags.split()]), *capfd.readouterr()

    return run


def epoch_of(path) -> int:
    return torch.load(path, weights_only=False)["epoch"]


def test_files_of_a_run_and_falling_back_from_a_broken_one(run, tmp_path):
    assert run("--epochs 2")[0] == 0
    assert epoch_of(tmp_path / "checkpoint.pth") == 1
    assert {"model_0.pth", "model_1.pth", "best.pth", "checkpoint_previous.pth"} <= {p.name for p in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))
    whole = (tmp_path / "checkpoint.pth").read_bytes()
    (tmp_path / "checkpoint.pth").unlink()  # it shares its content with model_1.pth and best.pth
    (tmp_path / "checkpoint.pth").write_bytes(whole[: len(whole) // 2])
    code, stdout, stderr = run("--epochs 3 --resume auto")
    assert code == 0, stderr
    assert "passed over" in stdout
    assert "Resumed" in stdout
    assert "checkpoint_previous.pth" in stdout
    assert epoch_of(tmp_path / "checkpoint.pth") == 2
    code, stdout, _ = run("--epochs 3 --resume auto")
    assert code == 0
    assert "nothing left to train" in stdout


def test_a_new_run_takes_nothing_from_an_old_one(run, tmp_path):
    assert run("--epochs 1")[0] == 0
    old = (tmp_path / "checkpoint.pth").read_bytes()
    assert run("--epochs 1 --seed 1")[0] == 0
    kept = list(tmp_path.glob("checkpoint_of_*.pth"))
    assert [path.read_bytes() for path in kept] == [old]


def test_what_does_not_fit_is_refused_and_nothing_is_lost(run, tmp_path):
    assert run("--epochs 1")[0] == 0
    saved = (tmp_path / "checkpoint.pth").read_bytes()
    other = image_folder(tmp_path / "other", train=2, val=1, classes=("bird", "fish", "frog"))
    source = f"--epochs 2 --resume {tmp_path}/checkpoint.pth"
    for flags, words in {
        f"{source} --data-path {other}": ("bird", "cat"),
        f"{source} --model resnet18": ("mobilenet_v2", "resnet18"),
        f"{source} --no-switchable-norms": ("unexpected",),
        f"{source} --opt rmsprop": ("RMSprop",),
        f"{source} --norm-weight-decay 0": ("optimizer",),
    }.items():
        code, _, stderr = run(flags, folder=tmp_path / "new")
        assert code == 2, flags
        assert "Traceback" not in stderr
        assert all(word in stderr for word in words), stderr
    assert (tmp_path / "checkpoint.pth").read_bytes() == saved


def test_changed_arguments_and_batches_are_reported(run, tmp_path):
    assert run("--epochs 1")[0] == 0
    code, stdout, stderr = run("--epochs 2 --batch-size 8 --resume auto")
    assert code == 0, stderr
    assert "batch_size 4 → 8" in stdout
    assert "global batch 4 → 8" in stdout


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(data, run, tmp_path):
    """No file may grow beyond half a checkpoint: what a full disk does to a program."""
    assert run("--epochs 1")[0] == 0
    saved = (tmp_path / "checkpoint.pth").read_bytes()
    limit = len(saved) // 2
    flags = [*SMALL.split(), "--epochs", "2", "--resume", "auto", "--data-path", data, "--output-dir", tmp_path]
    done = subprocess.run(
        command("train_adn.py", *flags),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert "checkpoint.pth" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "checkpoint.pth").read_bytes() == saved
    assert not list(tmp_path.glob(".*.tmp"))


def official_checkpoint(args: argparse.Namespace, order: list[str]) -> tuple[dict, dict]:
    """A checkpoint as the official code writes it, and each parameter's momentum by name."""
    model = models.build("vit_b_16", num_classes=2, image_size=32, **NARROW)
    names = [name for name, _ in model.named_parameters()]
    groups = optim.group_names(model, args)
    theirs = optim.ordered({name: "other" if groups[name] == "pos_embedding" else groups[name] for name in order})
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(
        [{"params": [parameters[name] for name in members], "weight_decay": 0.5} for members in theirs.values()],
        lr=0.25,
        momentum=0.9,
    )
    momenta = {name: torch.randn_like(parameters[name]) for name in names}
    for name in names:
        optimizer.state[parameters[name]]["momentum_buffer"] = momenta[name]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    state = {name: model.state_dict()[name] for name in order}
    ema = {f"module.{name}": tensor + 1 for name, tensor in state.items()}
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 6,
        "args": argparse.Namespace(model="vit_b_16", batch_size=32),
        "model_ema": {"n_averaged": torch.tensor(9), **ema},
    }, momenta


NARROW = {"hidden_dim": 16, "num_heads": 2, "mlp_dim": 32}


def test_an_official_checkpoint_is_continued():
    """Its parameters come in another order and groups (it leaves pos_embedding among the others)."""
    args = train_adn.parser().parse_args(["--model", "vit_b_16", "--model-ema", "--transformer-embedding-decay", "0"])
    args.norm_weight_decay = args.bias_weight_decay = 0.0
    model = models.build("vit_b_16", num_classes=2, image_size=32, **NARROW)
    order = [name for name, _ in model.named_parameters()][::-1]
    content, momenta = official_checkpoint(args, order)
    optimizer = optim.build_optimizer(model, args)
    state = checkpoint.State(
        model=model,
        optimizer=optimizer,
        scheduler=optim.build_scheduler(optimizer, args),
        ema=optim.MovingAverage(model, 0.9, 1),
        scaler=None,
        progress=checkpoint.Progress(),
        args=args,
        classes=["cat", "dog"],
    )
    state.restore(content, models.load_state, "official.pth")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, content["model"][name])
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momenta[name]), name
    assert all(torch.equal(t, content["model_ema"][f"module.{n}"]) for n, t in state.ema.module.state_dict().items())
    assert state.ema.n_averaged == 9
    assert (state.progress.epoch, state.progress.step) == (7, 0)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["fused"] is True


def test_saving_where_nothing_can_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.save(tmp_path / "file", {"model": {}})
