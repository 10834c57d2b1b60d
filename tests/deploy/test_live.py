"""The governed network in real time, small and short; and a server that loses nothing when its network fails."""

import argparse
import contextlib
import json
import threading
import time
from collections import Counter
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch

import models
from deploy import live
from deploy.arrivals import Load
from deploy.governor import Governor, Option
from deploy.measure import load
from deploy.report import Batch, Outcome
from deploy.simulate import as_profiled
from tests.deploy.test_profile import made
from utils.files import write_json

OPTIONS = [Option("F", batch, 0.002 + 0.001 * batch, 80.0) for batch in (1, 2, 4)]


def test_a_server_answers_each_request_once_whoever_sends_it():
    answers, lock = [], threading.Lock()

    def answer(request: int, what: int | None) -> None:
        with lock:
            answers.append((request, what))

    def run(option: Option, requests: list[int]) -> list[int]:
        assert len(requests) <= option.batch
        time.sleep(0.001)
        return [10 * request for request in requests]

    server = live.Server(Governor(OPTIONS), run, answer)

    def send(first: int) -> None:
        for request in range(first, first + 100):
            server.submit(request, time.monotonic() + (60.0 if request % 10 else 0.0))

    senders = [threading.Thread(target=send, args=(first,)) for first in (0, 100, 200)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    server.close()
    assert Counter(request for request, _ in answers) == Counter(range(300))
    assert dict(answers) == {request: 10 * request if request % 10 else None for request in range(300)}


def test_an_error_of_the_network_is_the_callers_and_its_requests_still_wait():
    def run(option: Option, requests: list[int]) -> list[int]:
        raise RuntimeError("the device fell off")

    governor = Governor(OPTIONS)
    server = live.Server(governor, run, lambda request, what: None)
    server.submit(1, time.monotonic() + 60)
    with pytest.raises(RuntimeError, match="fell off"):
        server.close()
    with pytest.raises(RuntimeError, match="fell off"):
        server.submit(2, time.monotonic() + 60)
    assert len(governor) == 1


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A tiny network with weights of its own, and a profile of it."""
    folder = tmp_path_factory.mktemp("live")
    torch.manual_seed(0)
    content = {"model": models.resnet20(num_classes=10).state_dict(), "classes": list("0123456789")}
    content["args"] = argparse.Namespace(model="resnet20", val_crop_size=8, val_resize_size=8)
    torch.save(content, folder / "weights.pth")
    profile = made(FFF=(12.0, 6.0, 20.0), TTT=(11.0, 3.0, 10.0))
    profile.about["threads"] = 1
    write_json(folder / "profile.json", asdict(profile))
    return folder


def flags(folder) -> list[str]:
    return ["--weights", str(folder / "weights.pth"), "--data-path", "digits", "--device", "cpu", "--workers", "0"]


def test_what_ran_live_is_written_beside_its_simulation(network, tmp_path, capsys):
    load = [str(network / "profile.json"), "--target-ms", "500", "--rate", "60", "--seconds", "0.7", "--images", "50"]
    argv = [*load, "--policies", "slack-fit", "TTT", "-o", str(tmp_path), "--turns", "2", *flags(network)]
    assert live.main(argv) == 0
    found = json.loads((tmp_path / "live.json").read_text())
    for kind in ("simulated", "profiled again", "live"):
        assert set(found[kind]) == {"slack-fit", "TTT"}
        for of in found[kind].values():
            assert sum(of["shares"].values()) + of["refused"] / 100 == pytest.approx(1)
    assert found["live"]["TTT"]["shares"] == {"TTT": pytest.approx(1 - found["live"]["TTT"]["refused"] / 100)}
    assert 0 <= found["live"]["slack-fit"]["right"] <= 100
    assert found["live"]["slack-fit"]["accuracy"] == pytest.approx(11.5, abs=0.5)
    out = capsys.readouterr().out
    assert out.index("simulated\n") < out.index("live\n")
    assert (tmp_path / "live.png").read_bytes().startswith(b"\x89PNG")


def test_the_device_is_found_to_be_as_slow_as_it_is():
    """By its profile a call takes 21 and 42 ms; now one image takes ten times as long, and eight as long as then."""
    load = argparse.Namespace(profile=made(F=(12.0, 20.0, 40.0)), args=argparse.Namespace(way="eager"))
    load.options = load.profile.options()

    def run(option: Option, requests: list[int]) -> None:
        time.sleep(0.21 if len(requests) == 1 else 0.042)

    found = live.slowness(run, load, torch.device("cpu"), contextlib.nullcontext)
    assert found == pytest.approx(252 / 63, rel=0.1)


def test_a_device_slower_than_its_profile_is_predicted(network, tmp_path):
    """By its profile all would be met; twice as slow, it is too slow for a third of them."""
    write_json(tmp_path / "profile.json", asdict(made(F=(12.0, 10.0, 24.0))))
    parser = argparse.ArgumentParser()
    live.flags(parser)
    flags = ["--target-ms", "100", "--rate", "220", "--seconds", "2", "--policies", "F", "--slowest", "1"]
    load = Load(parser.parse_args([str(tmp_path / "profile.json"), *flags]))
    means = load.profile.means("eager")

    def run(option: Option, requests: list[int]) -> list[tuple[bool, float]]:
        time.sleep(2 * means["F", len(requests)])
        return [(True, option.accuracy) for _ in requests]

    reached, again = live.by_turns(load, partial(live.Server, run=run), lambda: 2.0, turns=2)
    promised, found, live_ = (of["F"].summary(means) for of in (as_profiled(load), again, reached))
    assert promised["attained"] > 99
    assert live_["attained"] < 85
    assert found["attained"] < 85
    assert found["device"] == pytest.approx(2, rel=0.1)  # the server's own time counts


def test_the_servers_own_time_is_that_between_batches_while_requests_wait():
    outcome = Outcome(0.1, np.zeros(9))
    for start, waiting in ((0.0, 2), (0.011, 1), (0.022, 0), (0.9, 1), (0.3, 4), (0.311, 0)):
        outcome.batches.append(Batch(start, "F", 1, waiting, 0.01))
    assert live.own_time([outcome]) == pytest.approx(0.001)
    assert live.own_time([]) == 0


def test_a_switch_of_depth_allocates_nothing_and_gives_each_request_its_answer(network):
    loaded = load(flags(network), 1)
    images = live.Images(loaded, 20)

    def tensors() -> set[int]:
        return {tensor.data_ptr() for tensor in (*loaded.model.parameters(), *loaded.model.buffers())}

    before, modules = tensors(), set(map(id, loaded.model.modules()))
    loaded.model.eval()
    with torch.no_grad():
        for name in ("FFF", "TTT", "FTF", "FFF"):
            right = images.run(Option(name, 4, 0.0, 0.0), [3, 19, 20, 21])
            subnet = loaded.model.parse(name)
            picked = torch.tensor([3, 19, 0, 1])
            expected = loaded.model(images.images[picked], subnet).argmax(1) == images.targets[picked]
            assert right == [(one, 0.0) for one in expected.tolist()]
    assert tensors() == before
    assert set(map(id, loaded.model.modules())) == modules


def test_what_is_served_has_the_statistics_of_the_file(network, tmp_path):
    content = torch.load(network / "weights.pth", weights_only=False)
    model = models.resnet20(num_classes=10)
    model.load_state_dict(content["model"])
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    models.calibrate(model.eval(), [images])
    torch.save(content | {"statistics": {"model": model.statistics()}}, tmp_path / "weights.pth")
    served, raw = load(flags(tmp_path), 1).model.eval(), load([*flags(tmp_path), "--calibrate", "0"], 1).model.eval()
    with torch.no_grad():
        for skip in model.subnets:
            torch.testing.assert_close(served(images, skip), model(images, skip))
            assert not torch.allclose(raw(images, skip), model(images, skip))


def test_a_profile_of_another_network_is_refused(network, tmp_path, capsys):
    write_json(tmp_path / "profile.json", asdict(made(FFFF=(12.0, 6.0, 20.0))) | {"about": {"threads": 1}})
    assert live.main([str(tmp_path / "profile.json"), "--target-ms", "500", *flags(network)]) == 2
    assert "is of another network than resnet20" in capsys.readouterr().err


def test_weights_of_other_classes_are_refused(network, tmp_path, capsys):
    content = torch.load(network / "weights.pth", weights_only=False)
    torch.save(content | {"classes": list("abcdefghij")}, tmp_path / "weights.pth")
    argv = [str(network / "profile.json"), "--target-ms", "500", *flags(tmp_path)]
    assert live.main(argv) == 2
    assert "was trained on other data" in capsys.readouterr().err
