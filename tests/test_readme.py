"""The README's Python is run here; its commands in train/test_train.py and evaluate/test_recipes_eval.py."""

import re

import pytest
import torch

import models
from tests.recipes import README

BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def run(word: str, **names: object) -> dict[str, object]:
    """Run the one block that has the word in it; what it has defined."""
    (block,) = [block for block in BLOCKS if word in block]
    exec(block, names)
    return names


@torch.no_grad()
def test_the_first_example_works(capsys: pytest.CaptureFixture) -> None:
    names = run("model = models.resnet50", images=torch.randn(1, 3, 64, 64))
    assert capsys.readouterr().out.strip() == "Cost(macs=2560622592, parameters=17112360)"
    assert names["logits"].shape == (1, 1000)
    assert len(names["outputs"]) == 16
    assert type(names["small"]).__module__ == "torchvision.models.resnet"


@torch.no_grad()
def test_a_family_of_one_page_works() -> None:
    try:
        run("class AdaptiveNet")
        own, ours = models.build("my_resnet18", num_classes=7).eval(), models.resnet18(num_classes=7).eval()
    finally:
        models.MODELS.pop("my_resnet18", None)
    own.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 32)
    for skip, logits in own.forward_all(x).items():
        assert torch.equal(logits, ours(x, skip))
        assert torch.equal(own.extract(skip)(x), logits)
