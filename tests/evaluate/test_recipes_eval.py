"""The README's commands of testing and predicting, word for word: one really runs, the others say what they should."""

import re

import PIL.Image
import pytest
import torch
import torch.nn.functional as F

import methods
import models
import models.zoo
import train_adn
from tests.filled import filled
from tests.pictures import image_folder
from tests.recipes import arguments, commands
from utils.flags.arguments import parser
from utils.flags.evaluation import chosen

PATHS = {"weights": "weights.pth", "data path": "data", "image": "image.jpg"}
OF_RELEASES = [command for command in commands("evaluation") if re.search(r"--skip-cfg (True|False) ", command)]


def released(command: str) -> str:
    """The release that a command is about: that of its model; the second ResNet is resized to 232."""
    model = re.search(r"--model (\w+)", command)[1]
    return f"{model}_adn" + ("_v2" if "232" in command else "")


@pytest.mark.parametrize("command", [*commands("evaluation"), *commands("prediction")])
def test_a_command_is_understood_and_names_sub_networks_of_its_model(command):
    args = parser(methods).parse_args(arguments(command, PATHS))
    assert args.weights == PATHS["weights"]
    with torch.device("meta"):
        model = models.build(args.model)
    names = {model.name(subnet) for subnet in chosen(model, args.skip_cfg)}
    assert names <= {model.name(subnet) for subnet in model.subnets}
    assert len(names) == (len(model.subnets) if args.skip_cfg == ["all"] else 1)
    if command in OF_RELEASES:
        images = (args.val_resize_size or 256, args.val_crop_size or 224, args.interpolation or "bilinear")
        assert (*images, args.model) == tuple(models.zoo.settings(released(command)).values())


def test_there_is_one_for_every_release_of_the_paper():
    assert {released(command) for command in OF_RELEASES} == {name for name in models.zoo.RELEASED if "_adn" in name}


def test_a_command_gives_the_accuracy_and_loss_of_the_released_preprocessing(tmp_path, capsys):
    (command,) = [command for command in OF_RELEASES if "mobilenet" in command]
    folder = image_folder(tmp_path / "data", train=1, val=2)
    model = models.mobilenet_v2(num_classes=2).eval()
    model.load_state_dict(filled(model.state_dict()))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    flags = arguments(command, {"weights": tmp_path / "weights.pth", "data path": folder})
    assert train_adn.main([*flags, "--workers", "0", "--device", "cpu"]) == 0
    files = sorted((folder / "val").rglob("*.JPEG"))
    targets = torch.tensor([file.parent.name == "dog" for file in files]).long()
    transform = models.zoo.RELEASED[released(command)].transforms()
    with torch.inference_mode():
        logits = model(torch.stack([transform(PIL.Image.open(file)) for file in files]), model.super_net)
    top1 = 100 * (logits.argmax(1) == targets).double().mean().item()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("Test: FFFFF  4 images")
    assert line.endswith(f"Acc@1 {top1:.3f} Acc@5 100.000")
    assert float(re.search(r"loss (\S+)", line)[1]) == pytest.approx(F.cross_entropy(logits, targets).item(), abs=2e-4)
