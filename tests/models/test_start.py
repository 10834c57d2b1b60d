"""What a network starts from: a plain network's weights or one of ours; what is new or adapted is said."""

import argparse
import hashlib
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import methods
import models
import train_adn
from models.zoo import RELEASED, ResNet50_ADN_Weights
from tests.misbehaving_server import saved, serving
from tests.tiny import TINY, batch, tiny
from utils.flags.arguments import parser


@pytest.fixture
def model() -> models.AdaptiveDepth:
    return tiny("resnet18")


@torch.no_grad()
def test_a_new_head_stays_as_it_is(model: models.AdaptiveDepth) -> None:
    plain = torchvision.models.resnet18(num_classes=1000).eval()
    head = model.fc.weight.clone()
    with pytest.raises(models.WeightsError, match="another number of classes"):
        models.load_plain(model, plain.state_dict())
    fitted = models.load_plain(model, plain.state_dict(), new_head=True)
    assert fitted == (["fc.weight", "fc.bias"], [], "classifier new (1000 → 7 classes)")
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.layer1[0].bn1_skip.weight, plain.layer1[0].bn1.weight)
    plain.fc = torch.nn.Identity()
    model.fc = torch.nn.Identity()
    assert torch.equal(model(batch()), plain(batch()))


def test_adaptive_weights_also_start_a_network(model: models.AdaptiveDepth) -> None:
    twin = models.resnet18(num_classes=7)
    assert models.load_plain(twin, model.state_dict()) == ([], [], "fits as it is")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in twin.state_dict().items())


@torch.no_grad()
def test_torchvision_s_enum_starts_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real enum reads the real cache folder; only the file there is ours, under the name that its hash demands."""
    from torchvision.models import ResNet18_Weights
    from torchvision.models._api import Weights

    plain = torchvision.models.resnet18()
    path = tmp_path / "checkpoints" / "resnet18-here.pth"
    path.parent.mkdir()
    torch.save(plain.state_dict(), path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = ResNet18_Weights.IMAGENET1K_V1
    value = weights.value
    monkeypatch.setattr(
        weights, "_value_", Weights(url=f"file:///{path.name}", transforms=value.transforms, meta=value.meta)
    )
    model = models.resnet18(weights=weights)
    assert torch.equal(model.eval()(batch()), plain.eval()(batch()))
    assert list(path.parent.iterdir()) == [path]  # nothing is written: the folder may be somebody else's


def bias_tables(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in network.state_dict().items() if name.endswith("bias_table")}


@pytest.mark.parametrize("ours", [False, True])
def test_position_tables_of_another_window_are_interpolated(ours: bool) -> None:
    """A table that rises evenly with the distance still does, and its middle, distance 0, is the same place."""
    other = tiny("swin_t", window_size=7)
    for table in bias_tables(other).values():
        rows = torch.linspace(-6, 6, 13)
        table.copy_((rows[:, None] + 10 * rows).reshape(-1, 1).expand_as(table))
    model = tiny("swin_t", window_size=4, num_classes=3)
    head = model.head.weight.clone()
    fitted = models.load_plain(model, (other if ours else other.view()).state_dict(), new_head=True)
    assert fitted.words == "classifier new (7 → 3 classes), 12 position tables interpolated"
    assert fitted.interpolated == [*bias_tables(model)] if ours else len(fitted.interpolated) == 12
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.norm.weight, other.norm.weight)
    for table in bias_tables(model).values():
        square = table.reshape(7, 7, -1)
        assert square[3, 3].abs().max() < 1e-4
        step = 13 / 7
        assert torch.allclose(square[4, 3] - square[2, 3], torch.tensor(2 * step), rtol=0.05)
        assert torch.allclose(square[3, 4] - square[3, 2], torch.tensor(20 * step), rtol=0.05)
    assert model(batch()).shape == (2, 3)


def test_a_swin_of_version_2_has_no_tables_and_takes_another_window() -> None:
    model = tiny("swin_v2_t", window_size=4)
    assert models.load_plain(model, tiny("swin_v2_t").view().state_dict()).interpolated == []
    assert model(batch()).shape == (2, 7)


def test_position_embeddings_of_another_image_size_are_torchvision_s() -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    other, model = tiny("vit_b_16", image_size=64), tiny("vit_b_16", image_size=32)
    fitted = models.load_plain(model, other.state_dict())
    assert fitted == ([], ["encoder.pos_embedding"], "1 position table interpolated")
    theirs = interpolate_embeddings(32, 8, {**other.state_dict()})["encoder.pos_embedding"]
    assert torch.allclose(model.encoder.pos_embedding, theirs, atol=1e-6)
    broken = {**other.state_dict(), "encoder.pos_embedding": torch.ones(1, 1, 32)}
    with pytest.raises(models.WeightsError, match=r"encoder.pos_embedding: \[1, 1, 32\] in the file, \[1, 17, 32\]"):
        models.load_plain(model, broken)


def test_anything_else_that_does_not_fit_is_named(model: models.AdaptiveDepth) -> None:
    state = torchvision.models.resnet18().state_dict()
    state["layer1.0.bn1.weight"] = torch.ones(32)
    state["conv1.weight"] = torch.ones(7, 3, 7, 7)
    with pytest.raises(
        models.WeightsError, match=r"^a.pth: (?s:.*)2 of another shape(?s:.*)layer1.0.bn1.weight: \[32\]"
    ):
        models.load_plain(model, state, new_head=True, source="a.pth")


def test_a_file_of_ours_is_a_start_with_its_averaged_weights(model: models.AdaptiveDepth, tmp_path: Path) -> None:
    average = {f"module.{name}": value + 1 for name, value in model.state_dict().items()} | {
        "n_averaged": torch.ones(())
    }
    checkpoint = {"model": model.state_dict(), "args": argparse.Namespace(model="resnet18")}
    for name, content, said, added in (
        ("checkpoint.pth", checkpoint, "", 0),
        ("averaged.pth", checkpoint | {"model_ema": average}, ", its averaged weights", 1),
    ):
        torch.save(content, tmp_path / name)
        found = models.start.find(str(tmp_path / name), "resnet18")
        assert found.source == f"{tmp_path / name}{said}"
        started = models.resnet18(num_classes=9)
        assert models.load_plain(started, found.state, new_head=True).words == "classifier new (7 → 9 classes)"
        assert torch.equal(started.layer1[0].bn1_skip.weight, model.layer1[0].bn1_skip.weight + added)


def test_the_command_says_what_its_start_is_and_refuses_settings_that_are_none(
    model: models.AdaptiveDepth, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": model.state_dict(), "args": argparse.Namespace(val_resize_size="x")}, path)
    caplog.set_level("INFO")
    train_adn.build(parser(methods).parse_args(["--model", "resnet18", "--init-from", str(path)]), 3, 32, None)
    assert caplog.messages == [f"--init-from {path}: classifier new (7 → 3 classes)"]
    args = parser(methods).parse_args(["--test-only", "--weights", str(path)])
    with pytest.raises(models.WeightsError, match=r"checkpoint.pth: says val_resize_size='x', .* of type int"):
        train_adn.saved_weights(args)


@pytest.mark.parametrize("name", TINY)
def test_a_network_with_one_set_of_norms_starts_from_its_like(name: str) -> None:
    one, other = (
        tiny(name, switchable_norms=False),
        models.build(name, num_classes=7, **TINY[name], switchable_norms=False),
    )
    models.load_plain(other, one.state_dict())
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    cache = tmp_path / "home" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    return cache


def test_a_name_is_a_start_wherever_its_file_comes_from(cache: Path, tmp_path: Path) -> None:
    original = models.resnet50()
    body = saved(original.state_dict())
    (tmp_path / "resnet50_adn.pth").write_bytes(body)
    (cache / "resnet50_adn_v2.pth").write_bytes(body)
    assert models.start.find("resnet50_adn", "resnet50", folder=str(tmp_path)).source == repr(ResNet50_ADN_Weights.V1)
    for name in ("resnet50_adn_v2", "ResNet50_ADN_Weights.V2", "V2", "DEFAULT"):
        found = models.start.find(name, "resnet50")
        assert found.source == repr(ResNet50_ADN_Weights.V2)
        assert found.state.keys() == original.state_dict().keys()
    with pytest.raises(models.WeightsError, match="are weights of resnet50, not of resnet18"):
        models.start.find("resnet50_adn", "resnet18")
    with pytest.raises(
        models.WeightsError, match=r"^--init-from V9: neither .* of resnet18: ResNet18_Weights.IMAGENET1K_V1$"
    ):
        models.start.find("V9", "resnet18")
    with pytest.raises(models.WeightsError, match=r"of resnet20: none are$"):
        models.start.find("IMAGENET1K_V1", "resnet20")


def test_torchvision_s_name_is_fetched_with_the_hash_that_its_address_has(cache: Path) -> None:
    """The mirror has another file than torchvision's: refused, in one line."""
    body = saved({"weight": torch.ones(1)})
    with serving(body) as server, pytest.raises(models.WeightsError, match="its sha256 is not f37072fd") as error:
        models.start.find("IMAGENET1K_V1", "resnet18", url=server.address("good"))
    assert "\n" not in str(error.value)
    assert not list(cache.glob("*.pth*[!k]"))
    assert not hashlib.sha256(body).hexdigest().startswith("f37072fd")


def test_a_network_is_made_from_the_name_of_its_weights(cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = models.mobilenet_v2()
    torch.save(original.state_dict(), cache / "mobilenet_v2_adn.pth")
    for name in ("DEFAULT", "V1", "MobileNet_V2_ADN_Weights.V1", "mobilenet_v2_adn", RELEASED["mobilenet_v2_adn"]):
        built = models.mobilenet_v2(weights=name)
        assert all(map(torch.equal, built.state_dict().values(), original.state_dict().values()))
    known = "MobileNet_V2_Weights.IMAGENET1K_V1, MobileNet_V2_Weights.IMAGENET1K_V2"
    for name in ("IMAGENET1K_V3", "ResNet50_Weights.IMAGENET1K_V1", "v1", ""):
        with pytest.raises(models.WeightsError, match=re.escape(f"{name!r}; it has mobilenet_v2_adn, {known}")):
            models.mobilenet_v2(weights=name)


def test_torchvision_s_names_mean_its_enums() -> None:
    from torchvision.models import ResNet18_Weights, ResNet50_Weights

    named = models.zoo.named
    for name in ("DEFAULT", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"):
        assert named(name, "resnet18") is ResNet18_Weights.IMAGENET1K_V1
    assert named("DEFAULT", "resnet50") is ResNet50_ADN_Weights.V2
    assert named("IMAGENET1K_V2", "resnet50") is ResNet50_Weights.IMAGENET1K_V2
    assert named("ResNet50_Weights.DEFAULT", "resnet50") is ResNet50_Weights.IMAGENET1K_V2
    assert named("V1") is named("IMAGENET1K_V1") is named("resnet50") is None


def test_vit_weights_of_a_larger_image_make_a_network_of_that_size(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ViT_B_16_Weights

    small = {"hidden_dim": 32, "num_heads": 2, "mlp_dim": 64}
    swag = ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    path = cache / "vit-here.pth"
    torch.save(models.vit_b_16(image_size=384, **small).state_dict(), path)
    value = swag.value
    entry = torchvision.models.Weights(url=f"file:///{path.name}", transforms=value.transforms, meta=value.meta)
    monkeypatch.setattr(swag, "_value_", entry)
    assert models.vit_b_16(weights="IMAGENET1K_SWAG_E2E_V1", **small).image_size == 384
