"""What the README says is run: its Python blocks here, its commands in test_recipes_*.py and test_train.py."""

import re
from pathlib import Path

import pytest
import torch

import models
from tests.recipes import README

BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def block(text: str) -> str:
    (found,) = [block for block in BLOCKS if text in block]
    return found


@torch.no_grad()
def test_the_first_example_does_what_it_says(capsys: pytest.CaptureFixture) -> None:
    names: dict[str, object] = {"images": torch.randn(1, 3, 64, 64)}
    exec(block("model = models.resnet50"), names)
    printed = re.search(r"print\(models.cost\(.*\)\) +# (.*)", README.read_text())[1]
    assert capsys.readouterr().out.strip() == printed
    assert len(names["outputs"]) == 16
    assert type(names["small"]).__module__ == "torchvision.models.resnet"


@torch.no_grad()
def test_a_family_of_one_page_works() -> None:
    names: dict[str, object] = {}
    try:
        exec(block("class AdaptiveNet"), names)
        own, ours = models.build("my_resnet18", num_classes=7).eval(), models.resnet18(num_classes=7).eval()
    finally:
        models.MODELS.pop("my_resnet18", None)
    own.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 32)
    for skip, logits in own.forward_all(x).items():
        assert torch.equal(logits, ours(x, skip))
        assert torch.equal(models.extract(own, skip)(x), logits)


def test_every_file_it_names_is_there() -> None:
    named = set(re.findall(r"`((?:tools|tests|models)/[\w./]+)`", README.read_text()))
    assert named
    missing = [name for name in named if not (README.parent / Path(name)).exists()]
    assert missing == []
