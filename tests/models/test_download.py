"""Downloads from a real server that misbehaves: whole in the end, or refused with the reason and the way by hand."""

import hashlib
import multiprocessing
import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from models import WeightsError
from models.download import Remote, download
from tests.misbehaving_server import saved, serving

PAGE = "https://example.org/by-hand"


@pytest.fixture(scope="module")
def body() -> bytes:
    return saved({"weight": torch.randn(300, 300, generator=torch.Generator().manual_seed(0))})


@pytest.fixture
def server(body):
    with serving(body) as server:
        yield server


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
        ("cut_then_strange_part", [None, "half", None]),
        ("cut_without_version", [None, None]),
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
        ("bad_headers", "what the server sent is cut off"),
        ("damaged", "what the server sent is damaged: the bytes of archive/data/0 are not those that were written"),
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


def test_one_process_fetches_while_others_wait_and_then_continue_what_a_killed_one_began(server, body, tmp_path):
    file = remote(server, "slow", tmp_path)
    new = partial(multiprocessing.get_context("fork").Process, target=download)
    processes = [new(args=[Remote(file.url, file.target, "page")]) for _ in range(3)]
    processes[0].start()
    end = time.monotonic() + 120
    while not file.arrived():
        assert time.monotonic() < end
        time.sleep(0.005)
    processes[1].start()
    processes[2].start()
    processes[0].kill()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0]
    assert_whole(file, body)
    (_, first), (_, second) = server.requests
    assert first is None
    assert int(re.fullmatch(r"bytes=(\d+)-", second)[1]) > 0
