"""The governed network on a real local Ray: two replicas, of which one dies under load, and what is no image."""

import argparse
import http.client
import io
import json
import os
import secrets
import signal
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

import models
from tests.deploy.test_profile import made
from tests.launch import ENVIRONMENT
from utils.files import write_json

ray = pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
serve = pytest.importorskip("ray.serve", reason="ray has no serve here: pip install -e '.[ray]'")
NAME = f"governed{os.getpid()}"
CLASSES = list("0123456789")


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """Of the served network, tiny and with a profile that leaves the choice to the governor."""
    from examples import ray_serve

    folder = tmp_path_factory.mktemp("ray")
    content = {"model": models.resnet20(num_classes=10).state_dict(), "classes": CLASSES}
    content["args"] = argparse.Namespace(model="resnet20", val_crop_size=32, val_resize_size=32)
    torch.save(content, folder / "weights.pth")
    profile = made(FFF=(90.0, 60.0, 200.0), TTT=(85.0, 30.0, 100.0))
    profile.about["threads"] = 1
    write_json(folder / "profile.json", asdict(profile))
    given = {"profile": str(folder / "profile.json"), "target_ms": "30000", "replicas": "2"}
    given["flags"] = f"--weights {folder / 'weights.pth'} --device cpu"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # nothing in the home
    variables = {name: ENVIRONMENT[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    ray.init(
        num_cpus=2,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": variables},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": number})
        serve.run(ray_serve.app(given), name=NAME)
        yield number
    finally:
        serve.shutdown()
        ray.shutdown()


def picture(seed: int) -> bytes:
    noise = torch.randint(256, (40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    Image.fromarray(noise.numpy()).save(file := io.BytesIO(), "png")
    return file.getvalue()


def post(port: int, body: bytes) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/", body)
    response = connection.getresponse()
    text = response.read().decode()
    return response.status, json.loads(text) if text.startswith("{") else {"error": text}


def replicas() -> list[int]:
    """Processes of this test's governed replicas."""
    title, found = f"ray::ServeReplica:{NAME}:Governed".encode(), []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if line.read_bytes().startswith(title):
                found.append(int(line.parent.name))
        except OSError:
            pass  # it has just ended
    return found


def test_what_is_no_image_is_refused_in_one_line(port):
    status, answer = post(port, picture(0))
    assert status == 200
    assert answer["class"] in CLASSES
    assert answer["subnet"] in ("FFF", "TTT")
    assert 0 < answer["chance"] <= 1
    for body in (b"", b"no image", picture(0)[:500], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        status, answer = post(port, body)
        assert status == 400
        assert answer["error"].startswith("the body is no JPEG, PNG or WebP image")
    Image.new("1", (6000, 6000)).save(wide := io.BytesIO(), "png")
    assert post(port, wide.getvalue())[0] == 400
    assert post(port, bytes(8_000_001))[0] == 413
    assert post(port, picture(0))[0] == 200


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_replica_that_dies_under_load_loses_no_request(port):
    first = replicas()
    assert len(first) == 2
    over, answered = threading.Event(), []

    def send(sender: int) -> None:
        number = sender
        while not over.is_set():
            answered.append(post(port, picture(number))[0])
            number += 100

    senders = [threading.Thread(target=send, args=(number,)) for number in range(12)]
    for sender in senders:
        sender.start()
    time.sleep(1.5)
    before = len(answered)
    os.kill(first[0], signal.SIGKILL)
    time.sleep(2)
    over.set()
    for sender in senders:
        sender.join()
    assert 0 < before < len(answered)
    assert set(answered) == {200}
    assert first[0] not in replicas()
