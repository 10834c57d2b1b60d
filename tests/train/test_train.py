"""The command as a user meets it: the recipes, every precision, a run that learns, and mistakes."""

import argparse
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import methods
import models
import presets
import train_adn
from tests.launch import ROOT, launch, together
from tests.pictures import image_folder
from tests.recipes import arguments, commands
from tests.runs import content, metrics
from utils import processes
from utils.errors import UserError
from utils.flags.arguments import parser
from utils.flags.data import fill_defaults
from utils.train import engine
from utils.train import run as training
from utils.train.run import with_sync_bn
from utils.train.step import TrainingStep

SMALL = "--train-crop-size 32 --val-resize-size 32 --val-crop-size 32 --workers 0 --epochs 1 --batch-size 4"
# Four steps an epoch, in a second.
DIGITS = (
    "--model resnet20 --data-path digits --train-images 64 --val-images 20 --batch-size 16 --lr 0.01 "
    "--train-crop-size 16 --val-resize-size 16 --val-crop-size 16"
)
FP16 = "--amp --amp-dtype fp16"
FEW = f"{DIGITS} --train-images 16 --val-images 4 --batch-size 4 --train-crop-size 8"  # fp16 is slow on a CPU


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data"), train=4, val=2)


def standard(data: Path, tmp_path: Path) -> list[str]:
    paths = ["--data-path", str(data), "--output-dir", str(tmp_path / "out")]
    return ["--model", "mobilenet_v2_small", *paths, *SMALL.split()]


@pytest.fixture
def train(data, tmp_path, run):
    """Run the command in this process. Later flags replace earlier ones."""
    return lambda flags, *more: run(train_adn.main, *standard(data, tmp_path), *flags.split(), *more)


@pytest.mark.parametrize("recipe", commands("training"), ids=lambda line: line.split("--model ")[1].split()[0])
def test_a_recipe_is_understood(recipe):
    """Word for word: its network, its method and its augmentation can be made."""
    args = parser(methods).parse_args(arguments(recipe, {"data path": "data", "checkpoint": "."}))
    fill_defaults(args, methods.defaults(args))
    with torch.device("meta"):
        model = models.build(args.model, num_classes=1000, image_size=args.train_crop_size)
    method = methods.METHODS[args.method](args, model)
    passes = method.passes(0, 0)
    assert [this.role for this in passes] == list(method.roles)
    if args.method == "adn":
        assert [(this.role, this.subnet) for this in passes] == [("super", model.super_net), ("base", model.base_net)]
    elif args.method == "dsnet-gate":
        assert [this.subnet for this in passes] == ["gate"]
    else:
        assert {model.subnets[0], model.subnets[-1]} <= {this.subnet for this in passes}
    presets.train_transform(args)


def test_a_recipe_trains_in_two_processes(broken, tmp_path):
    """The cheapest one. Only paths, processes, epochs, batch and number of images are other than in the README.

    One of the images cannot be read.
    """
    recipes = commands("training")
    assert sum("--method" not in line for line in recipes) == 5, "those of the official code"
    (recipe,) = [line for line in recipes if "--model mobilenet_v2 " in line]
    flags = arguments(recipe, {"data path": broken, "checkpoint": tmp_path})
    more = ["--epochs=2", "--batch-size=2", "--workers=0", "--on-corrupt=skip"]
    done = launch("train_adn.py", *flags, *more, processes=2)
    assert done.returncode == 0, done.stderr
    assert "Acc@5 100.000" in done.stdout  # of two classes
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if line["event"] == "step"] == [2, 2]
    assert [len(line["corrupt"]) for line in lines if line["event"] == "epoch"] == [1, 1]  # met by either, named once
    assert str(broken / "train/cat/0.JPEG") in lines[1]["corrupt"][0]
    assert done.stdout.count("0.JPEG") == 1
    assert {"checkpoint.pth", "model_0.pth", "best.pth", "run.json"} <= {path.name for path in tmp_path.iterdir()}


def test_the_bundled_digits_are_learnt_by_both_networks(digits_run):
    last = metrics(digits_run)[-1]
    assert last["test_acc1_super"] > 80
    assert last["test_acc1_base"] > 80


def test_a_run_leaves_its_arguments_versions_and_commit(digits_run):
    about = json.loads((digits_run / "run.json").read_text())
    assert about["args"]["lr"] == 0.01
    assert about["versions"]["torch"] == str(torch.__version__)
    if (ROOT / ".git").exists() and shutil.which("git"):
        assert about["git_commit"]


def test_every_precision_trains_the_same_network(train, tmp_path):
    losses = {}
    for precision in ("", "--amp --amp-dtype bf16", FP16):
        code, _, stderr = train(f"{FEW} --print-freq 1 {precision}")
        assert code == 0, stderr
        losses[precision] = [line["loss_super"] for line in metrics(tmp_path / "out") if line["event"] == "step"][-1]
        checkpoint = content(tmp_path / "out")
        assert ("scaler" in checkpoint) == (precision == FP16)
        assert {t.dtype for t in checkpoint["model"].values() if t.is_floating_point()} == {torch.float32}
    assert list(losses.values()) == pytest.approx([losses[""]] * 3, rel=0.05)
    assert len(set(losses.values())) == 3  # rounded differently, so really other arithmetic


FLAGS_THAT_WORK = {  # few runs of many flags
    "accumulated": "--opt rmsprop --lr 0.001 --grad-accum 3 --batch-size 1 --train-crop-size 64",
    "features": "--fpn --subpath-temp 2 --subpath-topk 0 --opt sgd_nesterov --lr-scheduler exponentiallr",
    "ablation": "--no-distillation --no-switchable-norms --opt adamw --lr-step-size 1 --lr-warmup-epochs 1 "
    "--lr-warmup-method linear --checkpoint-steps 1 --cache-dataset",
    "individual": "--method individual --skip-cfg TTT --deterministic --no-channels-last --sync-bn",
}


@pytest.mark.parametrize("flags", FLAGS_THAT_WORK.values(), ids=FLAGS_THAT_WORK)
def test_many_flags_train_together(train, tmp_path, monkeypatch, flags):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, _, stderr = train(flags)
    assert code == 0, stderr


def test_an_individual_network_leaves_alone_what_it_does_not_use(tmp_path):
    """In two processes, where unused parameters must not come by gradients of zeros: these would let them decay."""
    flags = "--method individual --skip-cfg base --wd 0.5 --epochs 1 --output-dir"
    done = together("train_adn.py", *DIGITS.split(), *flags.split(), tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    before, after = models.resnet20(num_classes=10), content(tmp_path)
    base = before.view(before.base_net)
    used = {id(tensor) for tensor in (*base.parameters(), *base.buffers())}
    kept = {name for name, tensor in before.state_dict().items() if torch.equal(after["model"][name], tensor)}
    assert kept == {name for name, tensor in before.state_dict(keep_vars=True).items() if id(tensor) not in used}
    assert kept
    assert len(after["optimizer"]["state"]) == len(list(base.parameters()))


def graphs_after_each_epoch(monkeypatch: pytest.MonkeyPatch, flags: str) -> list[int]:
    """How many graphs torch has compiled at the end of each epoch, its test included."""
    counts: list[int] = []
    finish = training.finish_epoch

    def count(*arguments: object) -> object:
        results = finish(*arguments)
        counts.append(counters["stats"]["unique_graphs"])
        return results

    monkeypatch.setattr(training, "finish_epoch", count)
    torch._dynamo.reset()
    counters.clear()
    assert train_adn.main([*DIGITS.split(), "--epochs", "3", "--torch-compile", *flags.split()]) == 0
    return counts


def test_all_graphs_of_a_compiled_run_are_made_in_its_first_epoch(monkeypatch, tmp_path):
    """50 images in batches of 16, 20 to test on. A smaller last batch to train on would make dynamic graphs later."""
    compile_plainly = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_plainly(function, backend="eager"))
    counts = graphs_after_each_epoch(monkeypatch, f"--train-images 50 --device cpu --output-dir {tmp_path}")
    assert counts[0] > 0
    assert counts == counts[:1] * 3


def test_a_plain_network_is_a_start(train, tmp_path):
    import torchvision

    plain = torchvision.models.resnet18(num_classes=2)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    code, _, stderr = train("--lr 0 --model resnet18 --init-from", tmp_path / "plain.pth")
    assert code == 0, stderr
    started = content(tmp_path / "out")["model"]
    for name, parameter in plain.named_parameters():
        assert torch.equal(started[name], parameter)
    assert torch.equal(started["layer1.0.bn1_skip.weight"], plain.layer1[0].bn1.weight)


MISTAKES = {  # that data, network or machine find out; those of the command line alone are in tests/flags
    "--model resnet05": "resnet50",
    "--val-crop-size 300": "--val-resize-size",
    "--device cuda": "--device cpu",
    "--device gpu": "cuda",
    "--data-path /nowhere": "/nowhere",
    "--data-path /proc/self": "val",
    "--resume /nowhere/checkpoint.pth": "/nowhere/checkpoint.pth",
    "--init-from IMAGENET1K_V9": "IMAGENET1K_V9",
    "--method individual --skip-cfg TF": "--skip-cfg",
    "--method individual --skip-cfg all": "one network",
    "--world-size 4": "--world-size",
    "--dist-url tcp://host:1": "torchrun",
    "--output-dir /proc/none": "/proc/none",
    "--model vit_b_16 --sync-bn": "--sync-bn",
    "--model vit_b_16 --patch-size 5": "vit_b_16",
    "--model swin_t --stem small": "stem",
}


@pytest.mark.parametrize(("flags", "word"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(data, tmp_path, mistake, flags, word):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    line = mistake(train_adn.main, *standard(data, tmp_path), *flags.split())
    assert line.startswith("train_adn.py: error: ")
    assert word in line


def test_a_batch_norm_with_one_value_is_refused_before_anything_is_computed_or_written(train, tmp_path, monkeypatch):
    normalize, devices = torch.nn.functional.batch_norm, set()

    def watched(x: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        devices.add(x.device.type)
        return normalize(x, *rest, **more)

    monkeypatch.setattr(torch.nn.functional, "batch_norm", watched)
    code, _, stderr = train("--batch-size 1 --model mobilenet_v2")  # whose last maps are of one pixel
    assert code == 2
    (line,) = stderr.splitlines()
    assert line.startswith("train_adn.py: error: --batch-size 1: a batch norm has but one value per channel")
    assert devices == {"meta"}  # shapes alone
    assert not list(tmp_path.glob("out/*"))


def test_tensorboard_works_or_is_said_to_be_missing(train, tmp_path):
    code, _, stderr = train("--tensorboard")
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        assert code == 2
        assert "pip install tensorboard" in stderr
    else:
        assert code == 0
        assert list((tmp_path / "out").glob("events.*"))


@pytest.fixture
def broken(data, tmp_path) -> Path:
    """A folder with an image that cannot be read."""
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data/train/cat/0.JPEG").write_bytes(b"\xff\xd8 no image")
    return tmp_path / "data"


def test_a_corrupt_image_is_named_or_passed_over_and_counted(train, broken):
    code, _, stderr = train("--data-path", broken)
    assert code == 2
    assert str(broken / "train/cat/0.JPEG") in stderr
    code, stdout, stderr = train("--on-corrupt skip --data-path", broken)
    assert code == 0, stderr
    assert "1 corrupt" in stdout.splitlines()[-1]


def test_a_mistake_that_one_process_meets_is_reported_once(broken, tmp_path):
    flags = ["--model", "mobilenet_v2_small", *SMALL.split(), "--data-path", broken, "--output-dir", tmp_path / "out"]
    done = launch("train_adn.py", *flags, processes=2)
    assert done.returncode != 0
    assert done.stderr.count("train_adn.py: error") == 1
    assert "cannot decode" in done.stderr
    assert "[rank" not in done.stderr  # no traceback of the process that lost its partner


@pytest.fixture
def spoilt(monkeypatch):
    """Makes the losses of these steps infinite. The list tells of each step whether it moved a weight."""

    def spoil(*steps: int) -> list[bool]:
        moved: list[bool] = []
        take_step, loss_of = engine.take_step, TrainingStep._loss

        def watched(run: engine.Run, *rest: object) -> None:
            before = [parameter.clone() for parameter in run.state.model.parameters()]
            take_step(run, *rest)
            moved.append(not all(map(torch.equal, before, run.state.model.parameters())))

        def loss(*arguments: object) -> torch.Tensor:
            return loss_of(*arguments) * (math.inf if len(moved) in steps else 1)

        monkeypatch.setattr(engine, "take_step", watched)
        monkeypatch.setattr(TrainingStep, "_loss", loss)
        return moved

    return spoil


def test_steps_whose_fp16_loss_overflows_are_left_out_and_the_run_goes_on(train, spoilt, tmp_path):
    moved = spoilt(1, 2, 3)
    code, _, stderr = train(f"{FEW} --print-freq 2 {FP16}")
    assert code == 0, stderr
    assert moved == [True, False, False, False]
    assert content(tmp_path / "out")["scaler"]["scale"] == 65536 / 8
    losses = [line["loss_super"] for line in metrics(tmp_path / "out") if line["event"] == "step"]
    assert [loss is None for loss in losses] == [False, True]  # nan is no JSON


@pytest.mark.parametrize(
    ("flags", "steps", "moved"),
    [
        ("", (5,), [True] * 6),  # the first one is enough
        ("--amp --amp-dtype bf16", (5,), [True] * 6),
        (FP16, (4, 5, 6, 7), [True] * 4 + [False] * 4),  # all of an epoch
    ],
    ids=["fp32", "bf16", "fp16"],
)
def test_losses_that_are_not_finite_stop_a_run_and_keep_its_checkpoint(train, spoilt, tmp_path, flags, steps, moved):
    found = spoilt(*steps)
    code, _, stderr = train(f"{FEW} --epochs 2 --print-freq 2 {flags}")
    assert code == 2
    (line,) = stderr.splitlines()
    assert "the loss is not finite" in line
    assert found == moved
    diagnostic = json.loads((tmp_path / "out/diagnostic.json").read_text())
    assert (diagnostic["epoch"], diagnostic["step"]) == (1, len(moved) - 4)
    checkpoint = content(tmp_path / "out")
    assert (checkpoint["progress"]["epoch"], checkpoint["progress"]["step"]) == (1, 0)
    assert all(tensor.isfinite().all() for tensor in checkpoint["model"].values())


def test_weights_that_are_not_finite_are_never_saved(train, tmp_path, monkeypatch):
    """Though all losses were: the last step of an epoch has spoilt them."""
    take_step = engine.take_step

    def take_and_spoil(run: engine.Run, *rest: object) -> None:
        take_step(run, *rest)
        if run.state.progress.step == 3:
            run.state.model.fc.bias.data[0] = math.inf

    monkeypatch.setattr(engine, "take_step", take_and_spoil)
    code, _, stderr = train(FEW)
    assert code == 2
    assert "not finite" in stderr
    assert json.loads((tmp_path / "out/diagnostic.json").read_text())["tensors_not_finite"] == ["fc.bias"]
    assert not (tmp_path / "out/checkpoint.pth").exists()


def test_norms_whose_weights_widths_share_are_not_left_alone_in_silence_by_sync_bn(monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    with_sync_bn(models.build("s_mobilenet_v2_small"), torch.device("cuda"))
    with pytest.raises(UserError, match="--sync-bn: widths of this network share norms' weights"):
        with_sync_bn(models.build("us_mobilenet_v2_small"), torch.device("cuda"))


def test_a_device_without_room_is_one_line(capsys):
    def work(args: argparse.Namespace) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    assert train_adn.carry_out("train_adn.py", work, parser(methods).parse_args([])) == 2
    assert capsys.readouterr().err.startswith("train_adn.py: error: CUDA out of memory: lower --batch-size")
