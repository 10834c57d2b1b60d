"""Frozen teachers from outside: what they are made of, the loss, and whole runs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import methods
import models
import train_adn
from models import teacher
from models.weights import WeightsError
from tests.methods.test_adn import settings
from tests.runs import metrics
from tests.tiny import batch, tiny
from utils.train.step import TrainingStep

RUN = (
    "--data-path digits --model resnet20 --train-images 64 --val-images 20 --epochs 2 --batch-size 16 --lr 0.05 "
    "--workers 0 --calibrate 0 --device cpu --print-freq 2"
)


def kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """At temperature 2, over the teacher's five likeliest classes."""
    classes = teacher.topk(5, dim=1).indices
    p, q = (F.softmax(logits.gather(1, classes) / 2, dim=1) for logits in (teacher, student))
    return 4 * (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize("flags", ["", "--teacher-weight 0.7", "--teacher-weight 1", "--teacher-for-all"])
def test_the_loss_is_the_formula(flags: str) -> None:
    model = tiny("resnet18").double()
    args = settings(f"--teacher itself --subpath-alpha 0.4 --subpath-topk 5 {flags}")
    args.subpath_temp = methods.defaults(args)["subpath_temp"]
    method = methods.METHODS["adn"](args, model)
    outside = tiny("resnet18").double().extract()
    method.outside = teacher.Teacher(outside)
    images, labels = batch(6).double(), torch.arange(6)
    step = TrainingStep(model, torch.nn.CrossEntropyLoss(), method.distance, torch.no_grad)
    results = step(method.passes(0, 0), images, labels, lambda loss: None)
    supers, base, taught = model(images), model(images, model.base_net), outside(images)
    w = args.teacher_weight
    expected = [
        0.4 * (w * kl(taught, supers) + (1 - w) * F.cross_entropy(supers, labels)),
        0.6 * kl(taught if args.teacher_for_all else supers, base),
    ]
    torch.testing.assert_close([result.loss for result in results], expected)
    assert not any(parameter.requires_grad for parameter in method.outside.parameters())


def test_a_checkpoint_and_a_script_can_teach_and_what_cannot_is_refused(tmp_path: Path) -> None:
    model = tiny("resnet20", width=16, num_classes=10)
    saved = {"model": model.state_dict(), "args": train_adn.parser(methods).parse_args(["--model", "resnet20"])}
    torch.save(saved, ours := tmp_path / "ours.pth")
    script = tmp_path / "script.pt"
    torch.jit.trace(model.extract(), batch()).save(script)
    torch.export.save(torch.export.export(model.extract(), (batch(),)), exported := tmp_path / "exported.pt2")
    for name, subnet in ((ours, None), (ours, "TTT"), (script, None)):
        found = teacher.load(str(name), subnet=subnet)
        teacher.check(found, str(name), 10, 32)
        expected = model(batch(), subnet and model.parse(subnet))
        torch.testing.assert_close(found.train()(batch()), expected)
    assert teacher.load(str(ours)).sum() != teacher.load(str(ours), subnet="TTT").sum()
    bright = teacher.Teacher(model.extract(), 28, ((0.5,) * 3, (0.5,) * 3))
    pixels = batch() * torch.tensor(teacher.STD).view(3, 1, 1) + torch.tensor(teacher.MEAN).view(3, 1, 1)
    small = F.interpolate((pixels - 0.5) / 0.5, size=(28, 28), mode="bilinear", antialias=True)
    torch.testing.assert_close(bright(batch()), model(small), atol=1e-4, rtol=1e-4)
    plain = teacher.load(str(script), given=teacher.NONE)  # a run with --normalize none
    torch.testing.assert_close(plain(pixels), model(batch()), atol=1e-4, rtol=1e-4)
    for name, subnet, message in (
        (ours, "TT", "--teacher-subnet: .*TT"),
        (script, "TTT", "is one network"),
        (exported, None, "could run code"),
        ("resnet_50", None, "neither a file nor a network"),
    ):
        with pytest.raises(WeightsError, match=message):
            teacher.load(str(name), subnet=subnet)
    with pytest.raises(WeightsError, match=r"gives \[1, 10\] for an image, not the logits of 9 classes"):
        teacher.check(teacher.load(str(ours)), "ours", 9, 32)
    with pytest.raises(WeightsError, match=r"fails on images of 24 pixels .*--teacher-size"):
        teacher.check(teacher.Teacher(tiny("vit_b_16")), "vit", 7, 24)


def test_a_taught_run_goes_on_to_the_same_bits_and_only_with_its_teacher(tmp_path: Path, capfd) -> None:
    torch.manual_seed(0)
    model = models.build("resnet20", num_classes=10).eval()
    script = tmp_path / "teacher.pt"

    def run(folder: str, *more: str) -> tuple[int, str]:
        capfd.readouterr()
        places = ["--teacher", str(script), "--output-dir", str(tmp_path / folder)]
        code = train_adn.main([*RUN.split(), *places, *more])
        return code, capfd.readouterr().err

    torch.jit.trace(model.extract(), batch()).save(script)
    assert run("whole")[0] == run("parts", "--epochs", "1")[0] == 0
    assert run("parts", "--resume", "auto")[0] == 0
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pth", weights_only=False) for name in ("whole", "parts"))
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    assert not any(name.startswith("network.") for name in whole["model"])
    assert {"loss_super", "loss_base"} <= {key for line in metrics(tmp_path / "whole") for key in line}
    torch.nn.init.zeros_(model.conv1.weight)
    torch.jit.trace(model.extract(), batch()).save(script)
    code, said = run("parts", "--resume", "auto", "--epochs", "3")
    assert (code, said.count("\n")) == (2, 1)
    assert "was taught by another --teacher" in said
