"""Checkpoints: whole or not there, refused where they do not belong, read from the official code too."""

import argparse
import resource
import zlib

import pytest
import torch

import models
import train_adn
from tests.pictures import image_folder
from tests.runs import assert_same
from tests.tiny import tiny
from utils.errors import UserError
from utils.train import checkpoint, folder, optim
from utils.train.log import Meters

SMALL = (
    "--model mobilenet_v2_small --train-crop-size 32 --val-resize-size 32 --val-crop-size 32 --workers 0 "
    "--batch-size 4 --model-ema --lr 0.01"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data"), train=4, val=2)


@pytest.fixture
def train(data, tmp_path, run):
    def train(flags: str, folder=tmp_path) -> tuple[int, str, str]:
        return run(train_adn.main, *SMALL.split(), "--data-path", data, "--output-dir", folder, *flags.split())

    return train


def epoch_of(path) -> int:
    return torch.load(path, weights_only=False)["epoch"]


def test_files_of_a_run_and_falling_back_from_a_broken_one(train, tmp_path):
    assert train("--epochs 2")[0] == 0
    assert epoch_of(tmp_path / "checkpoint.pth") == 1
    assert {"model_0.pth", "model_1.pth", "best.pth", "checkpoint_previous.pth"} <= {p.name for p in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))
    whole = (tmp_path / "checkpoint.pth").read_bytes()
    (tmp_path / "checkpoint.pth").unlink()  # it shares its content with model_1.pth
    (tmp_path / "checkpoint.pth").write_bytes(whole[: len(whole) // 2])
    code, stdout, stderr = train("--epochs 3 --resume auto")
    assert code == 0, stderr
    assert "passed over" in stdout
    assert "Resumed" in stdout
    assert "checkpoint_previous.pth" in stdout
    assert epoch_of(tmp_path / "checkpoint.pth") == 2
    code, stdout, _ = train("--epochs 3 --resume auto")
    assert code == 0
    assert "nothing left to train" in stdout


def test_what_does_not_fit_is_refused_and_nothing_is_lost(train, tmp_path):
    assert train("--epochs 1")[0] == 0
    saved = (tmp_path / "checkpoint.pth").read_bytes()
    other = image_folder(tmp_path / "other", train=2, val=1, classes=("bird", "fish", "frog"))
    source = f"--epochs 2 --resume {tmp_path}/checkpoint.pth"
    for flags, words in {
        f"{source} --data-path {other}": ("bird", "cat"),
        f"{source} --model resnet18": ("mobilenet_v2", "resnet18"),
        f"{source} --lr 0.5 --wd 0": ("lr 0.01 → 0.5", "weight_decay 0.0001 → 0.0", "--change-settings"),
        f"{source} --change-settings --no-switchable-norms": ("unexpected",),
        f"{source} --change-settings --opt rmsprop": ("RMSprop",),
        f"{source} --change-settings --norm-weight-decay 0": ("optimizer",),
    }.items():
        code, _, stderr = train(flags, folder=tmp_path / "new")
        assert code == 2, flags
        assert "Traceback" not in stderr
        assert all(word in stderr for word in words), stderr
    assert (tmp_path / "checkpoint.pth").read_bytes() == saved


def test_changed_arguments_and_batches_are_reported(train, tmp_path):
    assert train("--epochs 1")[0] == 0
    code, stdout, stderr = train("--epochs 2 --batch-size 8 --val-resize-size 40 --resume auto --change-settings")
    assert code == 0, stderr
    assert "batch_size 4 → 8" in stdout
    assert "val_resize_size 32 → 40" in stdout
    assert "global batch 4 → 8" in stdout


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(train, tmp_path):
    """No file may grow beyond half a checkpoint: what a full disk does to a program."""
    assert train("--epochs 1")[0] == 0
    saved = (tmp_path / "checkpoint.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(saved) // 2, limits[1]))
    try:
        code, _, stderr = train("--epochs 2 --resume auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2, stderr
    assert "checkpoint.pth" in stderr
    assert "File too large" in stderr
    assert "Traceback" not in stderr
    assert (tmp_path / "checkpoint.pth").read_bytes() == saved
    assert not list(tmp_path.glob(".*.tmp"))


def official_checkpoint(args: argparse.Namespace, order: list[str]) -> tuple[dict, dict]:
    """A checkpoint as the official code writes it, and each parameter's momentum by name."""
    model = models.build("vit_b_16", num_classes=2, image_size=32, **NARROW)
    names = [name for name, _ in model.named_parameters()]
    groups = optim.group_names(model, args)
    theirs = optim.names_by_group(
        {name: "other" if groups[name] == "pos_embedding" else groups[name] for name in order}
    )
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
IDLE = torch.amp.GradScaler("cpu", enabled=False)


def state_of(model: torch.nn.Module, flags: str, scaler: torch.amp.GradScaler = IDLE) -> checkpoint.State:
    """The state of a run at its beginning."""
    args = train_adn.parser(train_adn.methods).parse_args(flags.split())
    return checkpoint.State(
        model=model,
        optimizer=(optimizer := optim.build_optimizer(model, args)),
        scheduler=optim.build_scheduler(optimizer, args),
        ema=optim.MovingAverage(model, 0.9, 1),
        scaler=scaler,
        progress=checkpoint.Progress(),
        args=args,
        classes=["cat", "dog"],
        trained=[],
    )


def rates(state: checkpoint.State, epochs: int) -> list[float]:
    """The learning rate at the beginning of each of the next epochs."""
    found = []
    for _ in range(epochs):
        found.append(state.optimizer.param_groups[0]["lr"])
        state.optimizer.step()
        state.scheduler.step()
    return found


@pytest.mark.parametrize(
    "schedule", ["--lr-scheduler cosineannealinglr", "--lr-warmup-epochs 3 --lr-step-size 2 --lr-warmup-method linear"]
)
def test_a_longer_run_goes_on_where_the_longer_schedule_is(schedule):
    flags = f"--model resnet20 --lr 0.1 --model-ema {schedule}"
    model = tiny("resnet20")
    before = state_of(model, f"{flags} --epochs 4")
    rates(before, 3)
    before.progress.epoch = 3
    longer = state_of(model, f"{flags} --epochs 8")
    longer.restore(before.content(), models.load_state, "checkpoint.pth")
    expected = rates(state_of(model, f"{flags} --epochs 8"), 8)
    assert rates(longer, 5) == expected[3:]
    entered = state_of(model, f"{flags} --epochs 8")
    entered.scheduler = optim.build_scheduler(entered.optimizer, entered.args, 3)  # what --start-epoch 3 does
    assert rates(entered, 5) == expected[3:]


def test_other_settings_are_taken_only_if_asked_for():
    model = tiny("resnet20")
    content = state_of(model, "--model resnet20 --lr 0.1 --wd 0.5 --momentum 0.8 --model-ema").content()
    other = "--model resnet20 --lr 0.3 --wd 0.25 --momentum 0.7 --model-ema"
    with pytest.raises(UserError, match=r"lr 0.1 → 0.3, momentum 0.8 → 0.7, weight_decay 0.5 → 0.25"):
        state_of(model, other).restore(content, models.load_state, "checkpoint.pth")
    changed = state_of(model, f"{other} --resume auto --change-settings")
    changed.restore(content, models.load_state, "checkpoint.pth")
    (group,) = changed.optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.3, 0.25, 0.7)
    assert len(group["params"]) == len(list(model.parameters()))


def test_an_official_checkpoint_is_continued():
    """Its parameters come in another order and groups (it leaves pos_embedding among the others)."""
    model = models.build("vit_b_16", num_classes=2, image_size=32, **NARROW)
    order = [name for name, _ in model.named_parameters()][::-1]
    decays = "--transformer-embedding-decay 0 --norm-weight-decay 0 --bias-weight-decay 0"
    state = state_of(model, f"--model vit_b_16 --model-ema {decays}")
    content, momenta = official_checkpoint(state.args, order)
    state.restore(content, models.load_state, "official.pth")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, content["model"][name])
        assert torch.equal(state.optimizer.state[parameter]["momentum_buffer"], momenta[name]), name
    assert all(torch.equal(t, content["model_ema"][f"module.{n}"]) for n, t in state.ema.module.state_dict().items())
    assert state.ema.n_averaged == 9
    assert (state.progress.epoch, state.progress.step) == (7, 0)
    assert state.optimizer.param_groups[0]["lr"] == 0.25
    assert state.optimizer.param_groups[0]["fused"] is True


def step(state: checkpoint.State, number: int) -> None:
    """A step with given gradients: the same in every memory layout."""
    for name, parameter in state.model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {number}".encode()))
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
    state.optimizer.step()
    state.ema.update(state.model, number, warming_up=False)


@pytest.mark.parametrize("flags", ["--lr 0.1", "--lr 0.1 --opt sgd_nesterov", "--opt adamw", "--opt rmsprop"])
@pytest.mark.parametrize(
    ("before", "after"),
    [(torch.contiguous_format, torch.channels_last), (torch.channels_last, torch.contiguous_format)],
)
def test_a_run_goes_on_in_another_memory_layout(before, after, flags, tmp_path):
    """Fused kernels walk a parameter and its state as flat memory."""
    flags = f"--model resnet20 {flags} --wd 0.01"
    whole = state_of(tiny("resnet20").to(memory_format=before), flags)
    for number in range(2):
        step(whole, number)
    folder.save(tmp_path, whole.content())
    resumed = state_of(tiny("resnet20").to(memory_format=after), flags)
    resumed.restore(models.read_checkpoint(tmp_path / "checkpoint.pth"), models.load_state, "checkpoint.pth")
    for number in range(2, 4):
        step(whole, number)
        step(resumed, number)
    for key in ("model", "optimizer", "model_ema"):
        assert_same(whole.content()[key], resumed.content()[key], key)
    for module in (resumed.model, resumed.ema.module):
        assert module.layer1[0].conv1.weight.is_contiguous(memory_format=after)
        assert not module.layer1[0].conv1.weight.is_contiguous(memory_format=before)


def written_by_version_1(model: torch.nn.Module, ours: checkpoint.State, trained: set[str]) -> dict:
    """A checkpoint in the layout of the first version, made without its code (nor ours) where the layout matters.

    Only the parameters `trained` have a momentum: an individual network's others had no gradient, but a number.
    """
    random = torch.Generator().manual_seed(3)
    names = [name for name, _ in model.named_parameters()]
    norms = [name for name in names if ".bn" in name or "downsample.1" in name or name.startswith("bn1")]
    order = [name for name in names if name not in norms] + norms
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    shared = {"momentum": 0.9, "dampening": 0, "nesterov": False, "maximize": False, "foreach": None}
    shared |= {"lr": 0.0125, "initial_lr": 0.1, "differentiable": False, "fused": True}
    return {
        "model": state,
        "optimizer": {
            "state": {
                number: {"momentum_buffer": torch.randn(state[name].shape, generator=random)}
                for number, name in enumerate(order)
                if name in trained
            },
            "param_groups": [
                {"weight_decay": 0.01, **shared, "params": list(range(len(order) - len(norms)))},
                {"weight_decay": 0.0, **shared, "params": list(range(len(order) - len(norms), len(order)))},
            ],
        },
        "lr_scheduler": {**ours.scheduler.state_dict(), "last_epoch": 4, "_step_count": 5, "_last_lr": [0.0125] * 2},
        "epoch": 3,
        "args": ours.args,
        "progress": {
            "epoch": 4,
            "step": 5,
            "samples": 60,
            "best": 31.25,
            "meters": [[[90.5, 12.0, 60.0, 60.0]] * 2],
            "corrupt": 1,
        },
        "classes": ["cat", "dog"],
        "world_size": 1,
        "versions": {"torch": "2.15.0"},
        "model_ema": {"n_averaged": torch.tensor(9), **{f"module.{name}": state[name] + 1 for name in state}},
        "scaler": {
            "scale": 512.0,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": 2000,
            "_growth_tracker": 7,
        },
    }


@pytest.mark.parametrize("individual", [False, True])
def test_a_checkpoint_of_version_1_is_taken_over_to_the_bit(individual, tmp_path):
    """Also with the parameters frozen that an individual network does not use."""
    model = tiny("resnet18")
    unused = {name for name, _ in model.named_parameters() if individual and "_skip" in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in unused)
    flags = "--model resnet18 --lr 0.1 --wd 0.01 --norm-weight-decay 0 --model-ema"
    state = state_of(model, flags, torch.amp.GradScaler("cpu"))
    trained = {name for name, _ in model.named_parameters()} - unused
    torch.save(written_by_version_1(model, state, trained), tmp_path / "old.pth")
    old = models.read_checkpoint(tmp_path / "old.pth")
    state.restore(models.read_checkpoint(tmp_path / "old.pth"), models.load_state, "old.pth")
    now = state.content()
    old["progress"]["corrupt"] = []  # that version only counted them
    for key in old.keys() - {"versions"}:
        assert_same(old[key], now[key], key)
    meters = Meters(2, torch.device("cpu"), state.progress.meters)
    assert meters.values().tolist() == [[[90.5, 12.0, 60.0, 60.0, 0.0]] * 2]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    step(state, 5)
    assert {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])} == unused
