"""Networks of several widths: against the official code's values, and against themselves."""

import copy
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from tests.filled import filled, golden_values, images
from tests.misbehaving_server import serving

GOLDEN = golden_values("slimmable.json.gz")["models"]
# of every kind one, those of a range with fewer statistics of their own
SMALL: dict[str, dict] = {"s_resnet18": {}, "s_mobilenet_v1": {}, "s_shufflenet": {}, "autoslim_mobilenet_v2": {}}
SMALL |= {"us_resnet50": {"widths": (0.25, 1.0)}, "us_mobilenet_v1": {"widths": (0.25, 0.5, 1.0)}}
SMALL |= {"us_mobilenet_v2": {"widths": (0.35, 1.0)}, "autoslim_mobilenet_v1": {}}
LOGITS = [(name, kind) for name, golden in GOLDEN.items() for kind in sorted(golden.keys() & {"fill", "fill_x2"})]


def small(name: str) -> models.ManyNetworks:
    """For images of 32 pixels, with statistics that differ."""
    model = models.build(name, num_classes=7, stem="small", **SMALL[name])
    model.load_state_dict(filled(model.state_dict()))
    return model.eval()


@pytest.mark.parametrize("name", GOLDEN)
def test_names_shapes_and_costs_are_the_reference_s(name: str) -> None:
    with torch.device("meta"):
        model = models.build(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == GOLDEN[name]["manifest"]
    macs = GOLDEN[name]["macs"]
    assert {model.name(subnet) for subnet in model.subnets} == macs.keys()
    words = list(macs)[::6] if len(macs) > 4 else macs
    assert {word: model.cost(model.parse(word)).macs for word in words} == {word: macs[word] for word in words}


@pytest.mark.parametrize(("name", "kind"), LOGITS)
@torch.no_grad()
def test_logits_are_the_reference_s(name: str, kind: str) -> None:
    model, factor = models.build(name).eval(), 2 if kind == "fill_x2" else 1
    state = filled(model.state_dict()).items()
    model.load_state_dict({key: factor * value if value.ndim > 1 else value for key, value in state})
    golden: Mapping[str, dict] = GOLDEN[name][kind]
    for word in list(golden)[:: 1 + len(golden) // 4]:
        logits, expected = model(images(2, 224), model.parse(word)), golden[word]
        # doubled weights magnify rounding: of the widest one, the reference is 1e-3 from its own value in float64
        tolerance = expected["std"] * (
            1e-3 if (name, kind, word) == ("autoslim_mobilenet_v2", "fill_x2", "3") else 1e-4
        )
        torch.testing.assert_close(logits[:, :8], torch.tensor(expected["head"]), atol=tolerance, rtol=0)
        assert logits.std().item() == pytest.approx(expected["std"], abs=tolerance)
        assert logits.argmax(1).tolist() == expected["argmax"]


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_width_is_an_ordinary_network_with_only_its_channels(name: str) -> None:
    model, x = small(name), images(2, 32)
    costs = []
    for subnet in (model.subnets[0], model.subnets[-1]):
        assert model.parse(model.name(subnet)) == subnet
        logits, plain = model(x, subnet), model.extract(subnet)
        assert torch.equal(plain(x), logits)
        kinds = {type(module) for module in plain.modules() if list(module.parameters(recurse=False))}
        assert kinds == {nn.Conv2d, nn.BatchNorm2d, nn.Linear}
        costs.append(model.cost(subnet, 32))
        assert costs[-1].parameters == sum(p.numel() for p in plain.parameters())
    assert costs[0] > costs[1]
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert all(torch.equal(twin(x, subnet), logits) for twin in twins)


@pytest.mark.parametrize("name", ["s_resnet18", "s_shufflenet", "us_mobilenet_v2", "autoslim_mobilenet_v2"])
def test_a_width_trains_its_leading_channels_and_its_own_statistics(name: str) -> None:
    model = small(name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(images(4, 32), model.subnets[-1]).sum().backward()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    ours = {key for key in before if ".bn.0." in key}
    shared = {key for key in before if key.startswith("features.18.1.") and name.startswith("us_")}
    statistics = {key for key in ours | shared if key.endswith(("_mean", "_var", "_tracked"))}
    assert changed == statistics
    trained = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert {key for key in trained if ".bn." in key} <= ours
    leading = {
        key: tuple(map(slice, value.shape)) for key, value in model.extract(model.subnets[-1]).named_parameters()
    }
    for key, part in leading.items():
        if key in trained:
            inside = trained[key][part].count_nonzero()
            assert inside > 0, key
            assert trained[key].count_nonzero() == inside, f"{key}: a channel that does not run has a gradient"


def test_a_network_of_a_list_has_these_widths_alone() -> None:
    model = models.build("s_mobilenet_v2")
    assert model.subnets == (1.0, 0.75, 0.5, 0.35)
    assert [model.parse(word) for word in ("0.35", ".5", "1")] == [0.35, 0.5, 1.0]
    assert [model.draw(place) for place in (0, 0.3, 0.99)] == [1.0, 0.75, 0.35]
    for bad in ("0", "0.4", "1.1", "wide", "nan"):
        with pytest.raises(ValueError, match=r"is no width of this network; it has 1.0, 0.75, 0.5, 0.35"):
            model.parse(bad)
    model = models.build("autoslim_mobilenet_v1")
    assert (model.subnets, model.parse("2")) == ((3, 2, 1), 2)
    with pytest.raises(ValueError, match="it has 3, 2, 1"):
        model(images(1, 32), 4)


@torch.no_grad()
def test_a_network_of_a_range_has_every_width_once_it_is_calibrated() -> None:
    model, x = small("us_mobilenet_v1"), images(4, 32)
    assert (model.parse("0.37"), model.name(0.37)) == (0.37, "0.37")
    assert [model.draw(place) for place in (0, 0.62, 1 - 2**-32)] == pytest.approx([0.25, 0.715, 1.0])
    for bad in ("0", "1.1", "0.2", "wide", "nan"):
        with pytest.raises(ValueError, match=r"is no width of this network; it has all from 0.25 to 1.0"):
            model.parse(bad)
    for evaluate in (lambda: model(x, 0.37), lambda: model.extract(0.37)):
        with pytest.raises(ValueError, match=r"width 0.37 has no running statistics .*calibrate it first, by --calib"):
            evaluate()
    assert model.cost(0.37, 32).macs < model.cost(0.4, 32).macs
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()(x, 0.37)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.eval().calibrate([x, 2 * x], [0.37])
    logits = model(x, 0.37)
    assert torch.equal(model.extract(0.37)(x), logits)
    other = small("us_mobilenet_v1")
    other.load_statistics(model.statistics())
    assert torch.equal(other(x, 0.37), logits)
    with pytest.raises(models.WeightsError, match=r"'0.1' is no"):
        other.load_statistics({"0.1": {}})


@torch.no_grad()
def test_a_listed_width_is_ready_once_somebody_has_trained_or_calibrated_it() -> None:
    model, x = models.build("us_mobilenet_v2_small", num_classes=7), images(4, 16)
    assert not any(map(model.ready, model.subnets))
    model.train()(x, 1.0)
    model.calibrate([x], [0.5])
    assert [width for width in model.subnets if model.ready(width)] == [1.0, 0.5]
    assert all(map(small("us_mobilenet_v1").ready, small("us_mobilenet_v1").subnets))  # by a file's statistics


@torch.no_grad()
def test_more_widths_than_views_are_kept_are_calibrated_together() -> None:
    model = models.build("us_mobilenet_v2_small", num_classes=7).eval()
    widths = [0.35 + 0.0065 * number for number in range(100)]
    model.calibrate([images(2, 16)], widths)
    assert set(model.statistics()) == set(map(model.name, widths))


def test_of_a_range_the_list_alone_is_compiled_and_equal_channels_are_one_view() -> None:
    model, x, compiled = models.build("us_mobilenet_v2_small", num_classes=7), images(2, 16), []
    model.compile(backend=lambda graph, _: compiled.append(graph) or graph.forward)
    for width in (1.0, 0.35, 0.7011, 0.5123, 0.70111):
        model(x, width)
    assert len(compiled) == 2
    assert len(model._views) == 4


@pytest.mark.parametrize("name", ["s_resnet18", "us_mobilenet_v2_small", "slimmable_mbnet_v1_small", "meta_resnet20"])
@torch.no_grad()
def test_logits_are_float32_under_autocast(name: str) -> None:
    """In 16 bits several of a thousand classes would be equal."""
    model, x = models.build(name, num_classes=1000), images(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.float32
    assert len(logits[0].unique()) > 950
    assert type(list(model.extract().modules())[-1]) is nn.Linear


@torch.no_grad()
def test_calibration_is_a_plain_average_over_batches() -> None:
    """As the official code does it: norms alone in training mode, averaging with momentum None."""
    model, batches = small("autoslim_mobilenet_v1"), [images(4, 32), 2 * images(4, 32, seed=8)]
    official = copy.deepcopy(model)
    for module in official.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
        module.training = "Norm" in type(module).__name__
    for x in batches:
        official.forward_all(x)
    assert model.calibrate(batches) == 27
    for subnet in model.subnets:
        torch.testing.assert_close(model(batches[0], subnet), official.eval()(batches[0], subnet), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_norm_that_all_widths_share_is_calibrated_for_each() -> None:
    model, x = small("us_mobilenet_v2"), images(8, 32)
    narrow, wide = (model.extract(width) for width in (0.35, 1.0))
    model.calibrate([x], [0.35, 1.0])
    for width, plain in ((0.35, narrow), (1.0, wide)):
        for norm in plain.modules():
            norm.momentum = 1.0
        plain.train()(x)
        found, expected = model.extract(width).features[18][1], plain.features[18][1]
        torch.testing.assert_close(found.running_mean, expected.running_mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.running_var, expected.running_var, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_released_file_is_an_archive_that_packs_the_torch_file(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched from a server; its names are those of a wrapped network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name, model = "autoslim_mobilenet_v1_imagenet", models.build("autoslim_mobilenet_v1")
    state = {f"module.{key}": value for key, value in filled(model.state_dict()).items()}
    inside, packed = io.BytesIO(), io.BytesIO()
    torch.save({"model": state}, inside, _use_new_zipfile_serialization=not legacy)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("autoslim_mobilenet_v1.pt", inside.getvalue())
        archive.writestr("__MACOSX/._autoslim_mobilenet_v1.pt", b"\0\5\x16\7")
    with serving(packed.getvalue()) as server:
        path = models.zoo.weights_file(name, url=server.address("good"))
        assert len(server.requests) == 1
    saved = models.read_weights(path, name)
    models.load_state(model, saved.state, saved.source)
    assert all(torch.equal(value, state[f"module.{key}"]) for key, value in model.state_dict().items())
    assert saved.settings["model"] == "autoslim_mobilenet_v1"
    assert models.zoo.published("autoslim_mobilenet_v1")[name]["2"] == {"gmacs": 0.325, "acc@1": 71.5}
    damaged = bytearray(packed.getvalue())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(models.WeightsError, match="not a whole torch file"):
        models.read_checkpoint(path)


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zeros.pt.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.pt", bytes(10**7))
    with pytest.raises(models.WeightsError, match=r"it packs zeros.pt more than 20 times"):
        models.read_checkpoint(path)
