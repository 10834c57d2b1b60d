"""Grad-CAMs of blocks and the numbers beside them: by the command on real images, and by their definitions."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import models
from tests.pictures import scene
from tests.tiny import batch, tiny
from tools import activation_maps


def test_a_file_of_weights_gets_pictures_and_numbers(tmp_path: Path, mistake) -> None:
    pytest.importorskip("matplotlib")
    model = models.build("resnet20", num_classes=4)
    torch.save(model.state_dict(), weights := tmp_path / "weights.pth")
    (tmp_path / "images").mkdir()
    for number in range(3):
        scene(seed=number).save(tmp_path / "images" / f"{number}.png")
    command = ["--weights", str(weights), "--images", str(tmp_path / "images"), "-o", str(tmp_path / "out")]
    assert activation_maps.main([*command, "--model", "resnet20", "--stage", "2", "--shown", "2"]) == 0
    assert (tmp_path / "out" / "maps.png").stat().st_size > 10_000
    numbers = json.loads((tmp_path / "out" / "maps.json").read_text())
    assert numbers["images"] == 3
    assert [len(ratios) for ratios in numbers["blocks"]["super-net"].values()] == [3, 3, 3]
    assert [len(ratios) for ratios in numbers["blocks"]["base-net"].values()] == [2, 2, 2]
    for more, problem in (([], "does not say of which model"), (["--model", "resnet20", "--stage", "4"], "has 3")):
        assert problem in mistake(activation_maps.main, *command, *more)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t"])
def test_numbers_and_maps_are_what_they_say(name: str) -> None:
    model, images = tiny(name), batch(3)
    found, block = activation_maps.changes(model, images.split(2)), {}

    def keep(_: object, inputs: tuple, output: torch.Tensor) -> None:
        block.update(h=inputs[0], y=output)

    base = model.view(model.base_net)
    first = next(module for module in base.modules() if type(module).__name__.endswith("Block"))
    first.register_forward_hook(keep)
    with torch.no_grad():
        base(images)
        h, y = block["h"].flatten(1), block["y"].flatten(1)
        expected = ((y - h).norm(dim=1) / h.norm(dim=1)).mean().item()
        assert found["base-net"]["1"][0] == pytest.approx(expected, abs=2e-4)
        features = [model(images, skip, return_features=True)[1][1].flatten(1) for skip in (None, model.base_net)]
        cosine = F.cosine_similarity(*features).mean().item()
        assert activation_maps.cosines(model, images.split(2))["2"] == pytest.approx(cosine, abs=2e-4)
    maps = activation_maps.grad_cams(model, model.super_net, 4, images)
    assert maps.shape[1:] == (3, 32, 32)
    assert maps.min() >= 0
    assert maps.max() <= 1
