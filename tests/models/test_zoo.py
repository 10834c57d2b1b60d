"""Released weights: a download from a real server that misbehaves, the cache, the folder, the enums and torch.hub."""

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torchvision.models import Weights, WeightsEnum
from torchvision.transforms.functional import InterpolationMode

import models
from models import WeightsError
from models.download import Remote, download
from models.zoo import RELEASED, ResNet50_ADN_Weights, Swin_T_ADN_Weights, preprocessing, published, weights_file
from tests.misbehaving_server import serving

ROOT = Path(__file__).parents[2]
PAGE = "https://example.org/by-hand"


def saved(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def body() -> bytes:
    return saved({"weight": torch.randn(300, 300, generator=torch.Generator().manual_seed(0))})


@pytest.fixture
def server(body):
    with serving(body) as server:
        yield server


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


def remote(server, way: str, folder: Path, **known) -> Remote:
    return Remote(server.address(f"{way}/file"), folder / "file.pth", PAGE, timeout=0.4, pause=0.01, **known)


def assert_whole(file: Remote, body: bytes) -> None:
    assert file.target.read_bytes() == body
    assert not file.partial.exists()
    assert not file.note.exists()


@pytest.mark.parametrize(
    ("way", "ranges"),
    [
        ("good", [None]),
        ("cut", [None, "half"]),
        ("cut_without_range", [None, "half"]),
        ("cut_then_changed", [None, "half"]),
        ("cut_then_416", [None, "half", None]),
        ("stall", [None, "half"]),
        ("slow", [None]),
        ("busy", [None, None]),
    ],
)
def test_a_bad_connection_ends_with_the_whole_file_and_asks_for_what_is_missing(server, body, tmp_path, way, ranges):
    file = remote(server, way, tmp_path, size=len(body), sha256=hashlib.sha256(body).hexdigest())
    download(file)
    assert_whole(file, body)
    assert [asked for _, asked in server.requests] == [asked and f"bytes={len(body) // 2}-" for asked in ranges]


def test_a_redirect_is_followed_and_keeps_its_range(server, body, tmp_path):
    file = remote(server, "redirect", tmp_path)
    download(file)
    assert_whole(file, body)
    half = f"bytes={len(body) // 2}-"
    assert server.requests == [("redirect", None), ("cut", None), ("redirect", half), ("cut", half)]


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("page", "the server sent a web page instead of the file"),
        ("hidden_page", "what the server sent is a web page"),
        ("empty", "what the server sent is empty"),
        ("text", "what the server sent is not a file that torch.save wrote"),
        ("missing", "the server answered 404"),
        ("forbidden", "the server answered 403"),
        ("always_cut", "the connection ended early, 4 times in a row"),
        ("cut_without_length", "what the server sent is cut off"),
        ("another_part", "the connection ended early, 4 times in a row"),
    ],
)
def test_a_refusal_says_why_and_how_to_do_it_by_hand(server, tmp_path, way, reason):
    file = remote(server, way, tmp_path)
    with pytest.raises(WeightsError, match=reason) as caught:
        download(file)
    assert f"open {PAGE} and save the file as {file.target}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not file.target.exists()


def test_a_wrong_length_and_a_wrong_hash_are_refused_and_leave_nothing_behind(server, body, tmp_path):
    with pytest.raises(WeightsError, match=f"the server has {len(body)} bytes, the file should have {len(body) + 1}"):
        download(remote(server, "good", tmp_path, size=len(body) + 1))
    with pytest.raises(WeightsError, match="its sha256 is not 0000"):
        download(remote(server, "good", tmp_path, sha256="0" * 64))
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth.lock"]
    file = remote(server, "good", tmp_path)
    download(file)
    assert_whole(file, body)


def test_a_web_page_in_the_middle_does_not_cost_the_half_that_came(server, body, tmp_path):
    file = remote(server, "cut_then_page", tmp_path)
    with pytest.raises(WeightsError, match="web page"):
        download(file)
    assert file.partial.read_bytes() == body[: len(body) // 2]
    assert not file.target.exists()


def test_a_partial_file_of_another_address_is_not_continued(server, body, tmp_path):
    half = remote(server, "cut_then_page", tmp_path)
    with pytest.raises(WeightsError):
        download(half)
    file = remote(server, "good", tmp_path)
    download(file)
    assert_whole(file, body)
    assert server.requests[-1] == ("good", None)


def test_offline_names_the_file_the_place_and_the_link(tmp_path):
    file = Remote("http://nowhere.invalid/file", tmp_path / "file.pth", PAGE, timeout=2, pause=0.01)
    with pytest.raises(WeightsError, match=r"cannot fetch file\.pth: no connection to nowhere\.invalid") as caught:
        download(file)
    assert str(file.target) in str(caught.value)
    assert PAGE in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match=re.escape(str(tmp_path / "file"))):
        download(remote(server, "good", tmp_path / "file"))


FETCH = """
import sys
from pathlib import Path
from models.download import Remote, download
download(Remote(sys.argv[1], Path(sys.argv[2]), "page"))
"""


def start(script: str, *arguments: object, **pipes: int) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, **pipes)


def test_one_process_fetches_while_others_wait_and_then_continue_what_a_killed_one_began(server, body, tmp_path):
    file = remote(server, "slow", tmp_path)
    processes = [start(FETCH, file.url, file.target)]
    end = time.monotonic() + 60
    while not file.arrived():
        assert time.monotonic() < end
        time.sleep(0.005)
    processes += [start(FETCH, file.url, file.target) for _ in range(2)]
    processes[0].send_signal(signal.SIGKILL)
    assert [process.wait(60) for process in processes] == [-signal.SIGKILL, 0, 0]
    assert_whole(file, body)
    (_, first), (_, second) = server.requests
    assert first is None
    assert int(re.fullmatch(r"bytes=(\d+)-", second)[1]) > 0


PLAIN = """
import sys
from torchvision.models import Weights, WeightsEnum
import models
class Plain(WeightsEnum):
    V1 = Weights(url=sys.argv[1], transforms=None, meta={})
model = models.resnet20(num_classes=7, width=8)
print("ready", flush=True)
input()
models.load_plain(model, Plain.V1)
print(sum(float(value.double().sum()) for value in model.view().state_dict().values()))
"""


def test_torchvision_s_weights_are_fetched_by_one_process_of_a_machine(cache):
    plain = models.resnet20(num_classes=7, width=8).view().state_dict()
    body = saved(plain)
    with serving(body) as server:
        url = server.address(f"slow/plain-{hashlib.sha256(body).hexdigest()[:8]}.pth")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        processes = [start(PLAIN, url, **pipes) for _ in range(2)]
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=60)[0] for process in processes]
        assert server.requests == [("slow", None)]
    expected = sum(float(value.double().sum()) for value in plain.values())
    assert [float(text.splitlines()[-1]) for text in printed] == [expected] * 2


@pytest.mark.parametrize(("name", "reason"), [("missing/x.pth", "404"), ("good/x-00000000.pth", "invalid hash")])
def test_torchvision_s_weights_that_cannot_be_had_say_why_and_how_to_do_it_by_hand(server, cache, name, reason):
    class Plain(WeightsEnum):
        V1 = Weights(url=server.address(name), transforms=None, meta={})

    with pytest.raises(WeightsError, match=reason) as caught:
        models.load_plain(models.resnet20(), Plain.V1)
    place = cache / Path(name).name
    assert str(caught.value).endswith(f"; open {Plain.V1.url} and save the file as {place}")
    assert not place.exists()


# --- what `--weights` means


def test_a_name_is_fetched_once_into_the_hub_cache_from_a_mirror(server, body, cache):
    for url in (server.address("good"), server.address("good/"), server.address("good/swin_t_adn.pth")):
        assert weights_file("swin_t_adn", model="swin_t", url=url) == cache / "swin_t_adn.pth"
    assert weights_file("Swin_T_ADN_Weights.V1") == cache / "swin_t_adn.pth"
    assert server.requests == [("good", None)]
    assert models.read_checkpoint(cache / "swin_t_adn.pth")["weight"].equal(torch.load(io.BytesIO(body))["weight"])


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


def test_a_path_is_a_path_and_everything_else_is_refused_with_the_names_there_are(tmp_path, body):
    path = tmp_path / "mine.pth"
    path.write_bytes(body)
    assert weights_file(str(path)) == path
    with pytest.raises(WeightsError, match=r"resnet51_adn: no such file, nor a released network \(resnet50_adn, "):
        weights_file("resnet51_adn")
    with pytest.raises(WeightsError, match="not a file"):
        weights_file(str(tmp_path))
    with pytest.raises(WeightsError, match="use --model swin_t"):
        weights_file("swin_t_adn", model="resnet50")
    with pytest.raises(WeightsError, match="no http or https address"):
        weights_file("swin_t_adn", url=f"file://{path}")


# --- torchvision's conventions


@pytest.mark.parametrize("name", RELEASED)
def test_an_entry_says_what_its_network_is(name):
    meta = RELEASED[name].meta
    model = models.build(meta["model"])
    assert sum(p.numel() for p in model.parameters()) == meta["num_params"]
    assert len(meta["categories"]) == 1000
    for subnet, figures in meta["subnets"].items():
        cost = model.cost(model.parse(subnet))
        # the authors count norms and activations too; TTTTT of MobileNetV2 is rounded from 0.205 + those
        assert cost.macs / 1e9 == pytest.approx(figures["gmacs"], rel=0.08)
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    assert RELEASED[name].transforms()(image).shape == (3, 224, 224)


def test_preprocessing_is_the_one_of_the_authors_evaluation():
    assert list(preprocessing("resnet50_adn_v2").items()) == [
        ("val_resize_size", 232),
        ("val_crop_size", 224),
        ("interpolation", "bilinear"),
    ]
    assert preprocessing("swin_t_adn")["val_resize_size"] == 256
    assert preprocessing("swin_t_adn")["interpolation"] == "bicubic"
    assert preprocessing("some/file.pth") == {}
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
