"""`--predict`: an image or a folder, with the classes that the weights know."""

import argparse
import re
from pathlib import Path

import PIL.Image
import pytest
import torch
from torchvision.transforms.functional import InterpolationMode

import models
import models.zoo
import train_adn
from tests.filled import filled
from tests.pictures import bad_images, jpeg, scene

NAMES = ["ant", "bee", "cow", "dog", "eel", "fox", "gnu"]


@pytest.fixture(scope="module")
def state():
    return filled(models.resnet18(num_classes=7).state_dict())


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for number, name in enumerate(("b.jpg", "a.jpeg", "deeper/c.JPEG")):
        (folder / name).write_bytes(jpeg(scene(80, 60, seed=number)))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def run(tmp_path, capsys):
    def run(path, content, *flags):
        torch.save(content, tmp_path / "weights.pth")
        common = f"--device cpu --weights {tmp_path / 'weights.pth'} --val-resize-size 40 --val-crop-size 32 --predict"
        code = train_adn.main([*common.split(), str(path), *flags])
        return code, *capsys.readouterr()

    return run


def test_a_folder_with_the_classes_of_the_checkpoint(run, state, images):
    code, out, _ = run(images, {"model": state, "classes": NAMES}, "--skip-cfg", "TTTT", "--batch-size", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[::2] == [str(images / name) for name in ("a.jpeg", "b.jpg", "deeper/c.JPEG")]
    model = models.resnet18(num_classes=7).eval()
    model.load_state_dict(state)
    preset = models.zoo.ImageClassification(crop_size=32, resize_size=40)
    for name, line in zip(lines[::2], lines[1::2], strict=True):
        with PIL.Image.open(name) as image, torch.inference_mode():
            chances = model(preset(image)[None], model.base_net).softmax(1)[0]
        expected = sorted(zip(chances.tolist(), NAMES, strict=True), reverse=True)[:5]
        found = re.findall(r"([\d.]+) % (\w+)", line)
        assert line.startswith("  TTTT  ")
        assert [label for _, label in found] == [label for _, label in expected]
        assert [float(p) for p, _ in found] == pytest.approx([100 * p for p, _ in expected], abs=0.1)


def test_several_sub_networks_of_one_image(run, state, images):
    code, out, _ = run(images / "b.jpg", {"model": state, "classes": NAMES}, "--skip-cfg", "super", "TFTF", "base")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["FFFF", "TFTF", "TTTT"]


def test_weights_that_do_not_say_their_classes(run, state, images):
    _, out, _ = run(images / "b.jpg", state)
    assert re.search(r"FFFF  [\d.]+ % class \d, ", out)
    _, out, _ = run(images / "b.jpg", filled(models.resnet18().state_dict()))
    (line,) = out.splitlines()[1:]
    likeliest = [name.strip() for name in re.findall(r"% ([^%]+?)(?:, [\d.]+ |$)", line)]
    assert len(likeliest) == 5
    assert set(likeliest) <= set(models.zoo.IMAGENET_CLASSES)


def test_a_released_network_brings_its_own_preprocessing(tmp_path, images, capsys):
    torch.save(filled(models.mobilenet_v2().state_dict()), tmp_path / "mobilenet_v2_adn.pth")
    flags = f"--device cpu --model mobilenet_v2 --weights mobilenet_v2_adn --weights-dir {tmp_path} --predict"
    assert train_adn.main([*flags.split(), str(images / "b.jpg")]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    model = models.mobilenet_v2(num_classes=1000).eval()
    model.load_state_dict(filled(model.state_dict()))
    with PIL.Image.open(images / "b.jpg") as image, torch.inference_mode():
        batch = models.zoo.RELEASED["mobilenet_v2_adn"].transforms()(image)[None]
        best = model(batch).argmax().item()
    assert re.match(r"  FFFFF  [\d.]+ % (.+?), \d", line)[1] == models.zoo.IMAGENET_CLASSES[best]


def test_a_checkpoint_brings_the_settings_of_its_run(images, tmp_path, capsys):
    model = models.resnet18(num_classes=7, stem="small").eval()
    model.load_state_dict(filled(model.state_dict()))
    settings = argparse.Namespace(
        model="resnet18", stem="small", val_resize_size=44, val_crop_size=36, interpolation="bicubic"
    )
    torch.save({"model": model.state_dict(), "classes": NAMES, "args": settings}, tmp_path / "weights.pth")
    flags = ["--device", "cpu", "--weights", str(tmp_path / "weights.pth"), "--predict", str(images / "b.jpg")]
    assert train_adn.main(flags) == 0
    line = capsys.readouterr().out.splitlines()[1]
    preset = models.zoo.ImageClassification(crop_size=36, resize_size=44, interpolation=InterpolationMode.BICUBIC)
    with PIL.Image.open(images / "b.jpg") as image, torch.inference_mode():
        chances = model(preset(image)[None]).softmax(1)[0]
    found = {name: float(p) for p, name in re.findall(r"([\d.]+) % (\w+)", line)}
    assert found == pytest.approx({name: 100 * chances[NAMES.index(name)].item() for name in found}, abs=0.1)
    assert train_adn.main([*flags, "--model", "resnet34"]) == 2
    assert "is of --model resnet18, not resnet34" in capsys.readouterr().err


def test_what_is_no_image_is_named(run, state, images, tmp_path):
    bad = bad_images(tmp_path / "bad")["truncated"]
    code, _, err = run(bad, state)
    assert code == 2
    assert str(bad) in err
    code, _, err = run(tmp_path / "nowhere", state)
    assert code == 2
    assert "nowhere: no such file or folder" in err
    (tmp_path / "empty").mkdir()
    code, _, err = run(tmp_path / "empty", state)
    assert code == 2
    assert "no images in this folder" in err
    bad.rename(images / "bad.jpg")
    code, out, _ = run(images, state, "--on-corrupt", "skip")
    assert code == 0
    assert re.search(r"left out: .*bad\.jpg", out)
    assert len(re.findall(r"FFFF", out)) == 3
