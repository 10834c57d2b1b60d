"""Scale-adaptive networks against the official code: names, shapes, MACs, and logits in all its modes of testing.

The official code's recipes are spelled as words here: a branch's norms and another encoding, or two branches' mean.
"""

import re

import pytest
import torch

import models
from models.resolution.scales import Scale, ScaleAdaptive
from tests.filled import filled, golden_values, images

GOLDEN = golden_values("san.json.gz")
RECORDS = GOLDEN["models"]["meta_resnet18"]["logits"]
SIZES = (224, 192, 160, 128, 96)


@pytest.fixture
def model() -> ScaleAdaptive:
    model = models.build("meta_resnet18")
    model.load_state_dict(filled(model.state_dict()))
    return model.eval()


def calibrated(model: ScaleAdaptive) -> None:
    """Statistics of one batch, as the records' were made."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train().forward_all([images(4, size, seed=11) for size in SIZES])
    model.eval()


def scaled(model: ScaleAdaptive) -> None:
    state = model.state_dict()
    for name, (_, *rest) in GOLDEN["models"]["meta_resnet18"]["kernels"].items():
        for tensor in ("weight", "bias"):
            state[f"{name}.{tensor}"] *= torch.Size(rest).numel() ** -0.5


def check(logits: torch.Tensor, record: dict) -> None:
    """To 1e-4 of the spread, also of logits that are large."""
    assert logits.std().item() == pytest.approx(record["std"], rel=1e-4)
    torch.testing.assert_close(logits[:, :8], torch.tensor(record["head"]), rtol=0, atol=1e-4 * record["std"])
    assert logits.argmax(1).tolist() == record["argmax"]


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_names_shapes_and_costs_are_the_official_ones(name: str) -> None:
    with torch.device("meta"):
        model, golden = models.build(name), GOLDEN["models"][name]
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == golden["manifest"]
    between = {208: "208@224+192", 176: "176@160", 144: "144@128:0.45", 112: "112@128+96:0.3"}
    macs = {size: model.cost(model.parse(between.get(int(size), size))).macs for size in golden["macs"]}
    assert macs == golden["macs"]


@pytest.mark.parametrize("group", [group for group in RECORDS if group != "datafree_interpolated_bn"])
def test_branches_have_the_official_logits_whatever_encoding_and_size(model: ScaleAdaptive, group: str) -> None:
    if group == "fill_scaled":
        scaled(model)
    elif not group.startswith("fill"):
        calibrated(model)
    model.train(group == "fill_train_mode_batch4")
    for name, record in RECORDS[group].items():
        branch, encoding, size = re.fullmatch(r"branch_(\d)_enc_([\d.]+)_in_(\d+)", name).groups()
        subnet = model.parse(f"{size}@{SIZES[int(branch)]}:{encoding}")
        assert subnet == Scale(int(size), (int(branch),), float(encoding))
        with torch.no_grad():
            check(model(images(len(record["head"]), int(size)), subnet), record)


def test_half_way_between_two_branches_logits_are_the_official_ones(model: ScaleAdaptive) -> None:
    calibrated(model)
    words = ("224", "208@224+192", "176@192+160", "144@160+128", "112@128+96")
    for word, record in zip(words, RECORDS["datafree_interpolated_bn"].values(), strict=True):
        subnet = model.parse(word)
        with torch.no_grad():
            check(model(images(2, subnet.size), subnet), record)
            check(model.extract(subnet)(images(2, subnet.size)), record)


def test_after_calibration_logits_are_the_official_ones(model: ScaleAdaptive) -> None:
    assert model.calibrate([[images(4, size, seed) for size in SIZES] for seed in (7, 8)]) == 20
    with torch.no_grad():
        logits = model.forward_all([images(2, size) for size in SIZES])
    records = GOLDEN["train_step"]["kd"]["after_bn_update"].values()
    for found, record in zip(logits.values(), records, strict=True):
        check(found, record)
