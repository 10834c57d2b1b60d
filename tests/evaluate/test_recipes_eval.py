"""The README's five evaluation commands, word for word, on generated weights and images."""

import re

import PIL.Image
import pytest
import torch
import torch.nn.functional as F

import models
import train_adn
from models.zoo import RELEASED
from tests.filled import filled
from tests.pictures import image_folder
from tests.recipes import arguments, commands
from utils.evaluate import table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data"), train=1, val=2)


RECIPES = [command for command in commands("evaluation") if re.search(r"--skip-cfg (True|False) ", command)]
OTHERS = [command for command in commands("evaluation") if command not in RECIPES]


def released(command: str):
    """The release that a command is about: that of its model; the second ResNet is resized to 232."""
    name = re.search(r"--model (\w+)", command)[1]
    return RELEASED[f"{name}_adn" + ("_v2" if "232" in command else "")]


@pytest.mark.parametrize("command", RECIPES)
def test_a_command_gives_the_accuracy_and_loss_of_the_released_preprocessing(command, folder, tmp_path, capsys):
    weights = released(command)
    model = models.build(weights.meta["model"], num_classes=2).eval()
    model.load_state_dict(filled(model.state_dict()))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    flags = arguments(command, {"weights": tmp_path / "weights.pth", "data path": folder})
    assert train_adn.main([*flags, "--workers", "0", "--device", "cpu"]) == 0
    skip = [word == "True" for word in re.search(r"--skip-cfg((?: True| False)+)", command)[1].split()]
    files = sorted((folder / "val").rglob("*.JPEG"))
    targets = torch.tensor([file.parent.name == "dog" for file in files]).long()
    with torch.inference_mode():
        logits = model(torch.stack([weights.transforms()(PIL.Image.open(file)) for file in files]), skip)
    top1 = 100 * (logits.argmax(1) == targets).double().mean().item()
    loss = F.cross_entropy(logits, targets).item()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith(f"Acc@1 {top1:.3f} Acc@5 100.000")
    assert line.startswith(f"Test: {models.subnet_name(skip)}  4 images")
    assert float(re.search(r"loss (\S+)", line)[1]) == pytest.approx(loss, abs=2e-4)


def test_there_are_five_of_them():
    assert len(RECIPES) == 5


@pytest.mark.parametrize("command", OTHERS)
def test_the_other_evaluation_commands_run_and_leave_their_table(command, folder, tmp_path, capsys):
    model = models.build(re.search(r"--model (\w+)", command)[1], num_classes=2)
    torch.save(filled(model.state_dict()), tmp_path / "weights.pth")
    flags = arguments(command, {"weights": tmp_path / "weights.pth", "data path": folder})
    small = (
        f"--workers 0 --device cpu --val-resize-size 40 --val-crop-size 32 --latency-batch 0 --output-dir {tmp_path}"
    )
    assert train_adn.main([*flags, *small.split()]) == 0
    rows, _ = table.read(tmp_path / "subnets.json")
    assert len(rows) == len(model.subnets)
    assert ("best within" in capsys.readouterr().out) is ("--budget" in command)


@pytest.mark.parametrize("command", commands("prediction"))
def test_the_command_that_predicts(command, folder, tmp_path, capsys):
    model = models.build(re.search(r"--model (\w+)", command)[1])
    torch.save(filled(model.state_dict()), tmp_path / "weights.pth")
    flags = arguments(command, {"weights": tmp_path / "weights.pth", "image": folder / "val" / "cat" / "0.JPEG"})
    assert train_adn.main([*flags, "--device", "cpu"]) == 0
    path, line = capsys.readouterr().out.splitlines()
    assert path.endswith("0.JPEG")
    assert re.match(rf"  {re.search('--skip-cfg ([TF]+)', command)[1]}  [0-9.]+ % ", line)
