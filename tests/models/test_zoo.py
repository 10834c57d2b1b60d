"""Weights by name: what `--weights` means, the cache, the folder, the enums, torchvision's weights and torch.hub."""

import hashlib
import multiprocessing
import re
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch
from torchvision.models import Weights, WeightsEnum
from torchvision.transforms.functional import InterpolationMode

import models
from models import WeightsError
from models.zoo import RELEASED, ResNet50_ADN_Weights, Swin_T_ADN_Weights, published, settings, weights_file
from tests.launch import ROOT
from tests.misbehaving_server import saved, serving
from tests.models.test_slimmable import GOLDEN as COUNTED


@pytest.fixture(scope="module")
def body() -> bytes:
    return saved({"weight": torch.arange(9.0)})


@pytest.fixture
def server(body):
    with serving(body) as server:
        yield server


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


def test_a_name_is_fetched_once_into_the_hub_cache_from_a_mirror(server, body, cache):
    for url in (server.address("good"), server.address("good/"), server.address("good/swin_t_adn.pth")):
        assert weights_file("swin_t_adn", model="swin_t", url=url) == cache / "swin_t_adn.pth"
    assert weights_file("Swin_T_ADN_Weights.V1") == cache / "swin_t_adn.pth"
    assert server.requests == [("good", None)]
    assert models.read_checkpoint(cache / "swin_t_adn.pth")["weight"].equal(torch.arange(9.0))


def test_a_folder_is_used_without_a_network_and_says_what_it_lacks(body, tmp_path):
    with pytest.raises(WeightsError, match=re.escape(f"save the file as {tmp_path / 'resnet50_adn.pth'}")):
        weights_file("resnet50_adn", folder=str(tmp_path))
    (tmp_path / "resnet50_adn.pth").write_bytes(body)
    assert weights_file("resnet50_adn", folder=str(tmp_path)) == tmp_path / "resnet50_adn.pth"


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"\n <html>", "web page"), (b"PK\3\4", "cut off")])
def test_a_file_put_there_by_hand_is_looked_at(cache, content, reason):
    cache.mkdir(parents=True)
    (cache / "vit_b_16_adn.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        weights_file("vit_b_16_adn")


def test_a_path_is_a_path_and_everything_else_is_refused_with_the_names_there_are(cache, tmp_path, body):
    path = tmp_path / "mine.pth"
    path.write_bytes(body)
    assert weights_file(str(path)) == path
    with pytest.raises(WeightsError, match=r"resnet51_adn: no such file, nor a released network \(resnet50_adn, "):
        weights_file("resnet51_adn")
    with pytest.raises(WeightsError, match="not a file"):
        weights_file(str(tmp_path))
    with pytest.raises(WeightsError, match="use --model swin_t"):
        weights_file("swin_t_adn", model="resnet50")
    for url in (f"file://{path}", "http://[nowhere", "http://nowhere:port/file.pth"):
        with pytest.raises(WeightsError, match=r"no http or https address|nonnumeric port"):
            weights_file("swin_t_adn", url=url)
    with pytest.raises(WeightsError, match=r"weights of an ordinary network.*--init-from"):
        weights_file("IMAGENET1K_V1", model="resnet18")


@pytest.mark.parametrize("name", RELEASED)
def test_an_entry_says_what_its_network_is(name):
    meta = RELEASED[name].meta
    with torch.device("meta"):
        model = models.build(meta["model"])
    assert sum(p.numel() for p in model.parameters()) == meta["num_params"]
    assert len(meta["categories"]) == 1000
    words, counted = list(meta["subnets"]), COUNTED.get(meta["model"], {}).get("macs", {})
    for word in words if counted else words[:: 1 + len(words) // 8]:  # test_slimmable.py holds ours to what is counted
        macs = counted.get(word) or model.cost(model.parse(word)).macs
        # the authors count norms and activations too; TTTTT of MobileNetV2 is rounded from 0.205 + those
        assert macs / 1e9 == pytest.approx(meta["subnets"][word]["gmacs"], rel=0.08)
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    assert RELEASED[name].transforms()(image).shape == (3, 224, 224)


def test_the_preprocessing_is_the_one_of_the_authors_evaluation():
    assert list(settings("resnet50_adn_v2").items()) == [
        ("val_resize_size", 232),
        ("val_crop_size", 224),
        ("interpolation", "bilinear"),
        ("model", "resnet50"),
    ]
    assert settings("swin_t_adn")["val_resize_size"] == 256
    assert settings("swin_t_adn")["interpolation"] == "bicubic"
    assert settings("some/file.pth") == settings(None) == {}
    for name in (
        "ResNet50_ADN_Weights.V2",
        "ResNet50_ADN_Weights.DEFAULT",
        "V2",
        "DEFAULT",
    ):  # all that --weights takes
        assert settings(name, "resnet50") == settings("resnet50_adn_v2")
    assert Swin_T_ADN_Weights.DEFAULT.transforms().interpolation == InterpolationMode.BICUBIC
    assert ResNet50_ADN_Weights.DEFAULT is ResNet50_ADN_Weights.V2


def test_published_points_belong_to_their_model():
    assert list(published("resnet50")) == ["resnet50_adn", "resnet50_adn_v2"]
    assert published("resnet50")["resnet50_adn"]["TTTT"] == {"gmacs": 2.58, "acc@1": 76.1}
    assert published("resnet18") == {}


def test_hub_and_enum_give_the_network_with_the_released_weights(cache, monkeypatch):
    torch.manual_seed(1)
    original = models.mobilenet_v2().eval()
    cache.mkdir(parents=True)
    torch.save(original.state_dict(), cache / "mobilenet_v2_adn.pth")
    images = torch.randn(1, 3, 64, 64)
    by_name = torch.hub.load(str(ROOT), "mobilenet_v2_adn", source="local").eval()
    by_enum = models.mobilenet_v2(weights=RELEASED["mobilenet_v2_adn"]).eval()
    with torch.inference_mode():
        for skip in (original.super_net, original.base_net):
            assert torch.equal(by_name(images, skip), original(images, skip))
            assert torch.equal(by_enum(images, skip), original(images, skip))
    untrained = torch.hub.load(str(ROOT), "mobilenet_v2_adn", source="local", pretrained=False, num_classes=7)
    assert untrained(images).shape == (1, 7)
    other = torch.hub.load(str(ROOT), "resnet18", source="local", num_classes=7)
    assert other(images).shape == (1, 7)


def load_together(url: str, ready: Barrier, sums: SimpleQueue) -> None:
    """What each of several processes does at the same time."""
    torch.set_num_threads(1)  # the threads of the process that this one was forked from are not here

    class Plain(WeightsEnum):
        V1 = Weights(url=url, transforms=None, meta={})

    model = models.resnet20(num_classes=7, width=8)
    ready.wait()
    models.load_plain(model, Plain.V1)
    sums.put(sum(float(value.double().sum()) for value in model.view().state_dict().values()))


def test_torchvision_s_weights_are_fetched_by_one_process_of_a_machine(cache):
    plain = models.resnet20(num_classes=7, width=8).view().state_dict()
    body, fork = saved(plain), multiprocessing.get_context("fork")
    ready, sums = fork.Barrier(2), fork.SimpleQueue()
    with serving(body) as server:
        url = server.address(f"slow/plain-{hashlib.sha256(body).hexdigest()[:8]}.pth")
        processes = [fork.Process(target=load_together, args=(url, ready, sums)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
        assert server.requests == [("slow", None)]
    expected = sum(float(value.double().sum()) for value in plain.values())
    assert [sums.get(), sums.get()] == [expected] * 2


@pytest.mark.parametrize(
    ("name", "reason"), [("missing/x.pth", "404"), ("good/x-00000000.pth", "its sha256 is not 000")]
)
def test_torchvision_s_weights_that_cannot_be_had_say_why_and_how_to_do_it_by_hand(server, cache, name, reason):
    class Plain(WeightsEnum):
        V1 = Weights(url=server.address(name), transforms=None, meta={})

    with pytest.raises(WeightsError, match=reason) as caught:
        models.load_plain(models.resnet20(), Plain.V1)
    place = cache / Path(name).name
    assert f"; open {Plain.V1.url} and save the file as {place}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not place.exists()
