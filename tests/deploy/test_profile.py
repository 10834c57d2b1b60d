"""A real profile of a tiny network: every way, the file it makes, and that two of them agree; joining accuracies."""

import json
import sys
from collections.abc import Callable

import pytest
import torch
from torch.export import Dim

import models
from deploy import energy, measure, profile, simulate
from deploy.profile import Profile, Row
from tests.deploy.test_energy import Nvml
from utils.evaluate import table

FLAGS = ["--model", "resnet20", "--val-crop-size", "8", "--val-resize-size", "8", "--device", "cpu", "--threads", "1"]
FEW = ["--batches", "2", "1", "--rounds", "9", "--seconds", "2", "--energy-seconds", "0"]


def run(folder, *flags: str) -> tuple[int, Profile | None]:
    path = folder / "profile.json"
    code = profile.main([*FLAGS, *FEW, "-o", str(path), *flags])
    return code, Profile.read(path) if path.exists() else None


def evaluation(folder, **top1: float) -> str:
    table.write([table.Row(name, 1.0, 1.0, None, value, 99.0) for name, value in top1.items()], {}, folder)
    return str(folder / "subnets.json")


def test_a_profile_has_a_row_for_each_sub_network_and_batch(tmp_path, capsys):
    code, first = run(tmp_path, "--subnets", "super", "base")
    assert code == 0
    out = capsys.readouterr().out
    assert [(row.subnet, row.batch) for row in first.rows] == [("FFF", 1), ("TTT", 1), ("FFF", 2), ("TTT", 2)]
    for one in first.rows:
        assert f"({one.ms['25']:.2f}–{one.ms['75']:.2f})" in out
        assert list(one.ms.values()) == sorted(one.ms.values())
        assert one.images_per_s == pytest.approx(1000 * one.batch / one.ms["50"], rel=0.01)
    assert first.about["energy"] == "not measured: --energy-seconds 0"
    assert first.about["threads"] == 1
    network = models.resnet20(num_classes=1000)
    assert first.subnets["TTT"]["macs"] == network.cost(network.base_net, 8).macs


def test_a_profile_of_two_ways_with_accuracies_finds_the_best_within_a_budget(tmp_path, capsys):
    subnets = evaluation(tmp_path, FFF=90.0, TTT=91.0)
    flags = ["--subnets", "super", "base", "--ways", "eager", "plain", "--evaluation", subnets]
    code, found = run(tmp_path, *flags, "--budget-latency", "1000")
    assert code == 0
    assert {row.way for row in found.rows} == {"eager", "plain"}
    assert found.subnets["FFF"]["top1"] == 90.0
    assert "best within 1000 ms: TTT, Acc@1 91.00" in capsys.readouterr().out
    assert [option[:2] for option in found.options("plain")] == [("FFF", 1), ("TTT", 1), ("FFF", 2), ("TTT", 2)]
    assert run(tmp_path, *flags, "--budget-latency", "0.0001")[0] == 2
    assert "--budget-latency 0.0001: the fastest takes" in capsys.readouterr().err


def made(**of: tuple[float, float, float]) -> Profile:
    """Sub-networks with an accuracy, and milliseconds at batches 1 and 8."""
    rows = [
        Row(name, "eager", batch, **measure.figures([ms * (1 + q / 1000) for q in range(101)], batch))
        for batch, place in ((1, 1), (8, 2))
        for name, values in of.items()
        for ms in (values[place],)
    ]
    return Profile({"model": "made"}, {name: {"macs": 1, "top1": values[0]} for name, values in of.items()}, rows)


def test_what_is_slower_and_worse_is_named_and_never_chosen():
    found = made(FF=(90.0, 4.0, 20.0), FT=(89.0, 5.0, 19.0), TF=(88.0, 4.0, 21.0), TT=(85.0, 2.0, 10.0))
    assert found.dominated("eager") == {"TF": "FF"}
    assert found.best("eager", 4.5).subnet == "FF"
    assert found.best("eager", 2.5).subnet == "TT"
    assert found.options()[0].seconds == pytest.approx(0.004 * 1.095)


def test_energy_is_per_image_and_idle_power_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "window", lambda meter, work, seconds: energy.Window(30.0, 2.0, 10))
    monkeypatch.setattr(energy, "find", lambda gpu: energy.Meter("a fake", float))
    energies = measure.Energies(2.0, torch.device("cpu"))
    assert energies.about == {"energy": "a fake", "idle_watts": 30.0}
    assert energies.joules(int, 4) == pytest.approx(30 * 2 / 10 / 4)

    def fail(*_: object) -> None:
        raise energy.NotMeasured("the counter went away")

    monkeypatch.setattr(energy, "window", fail)
    assert energies.joules(int, 4) is None
    assert energies.about == {"energy": "not measured: the counter went away"}


class Both(torch.nn.Module):
    """Takes what a network of all depths takes."""

    def forward(self, images: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) + skip.sum()


def test_an_exported_file_is_one_more_way(tmp_path, monkeypatch, capsys):
    images, skip = torch.zeros(2, 3, 8, 8), torch.zeros(3, dtype=torch.bool)
    for name, module, given in (("both", Both(), (images, skip)), ("alone", torch.nn.ReLU(), (images,))):
        sizes = ({0: Dim("batch", min=1, max=9)}, None)[: len(given)]
        torch.export.save(torch.export.export(module, given, dynamic_shapes=sizes), tmp_path / f"{name}.pt2")
    (tmp_path / "broken.pt2").write_text("no such file")
    flags = ["--subnets", "super", "base", "--file"]
    code, found = run(tmp_path, *flags, str(tmp_path / "both.pt2"))
    assert code == 0
    assert [(row.subnet, row.way) for row in found.rows][:4] == [
        (n, w) for w in ("eager", "file") for n in ("FFF", "TTT")
    ]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name, said in (
        ("alone.pt2", "holds one network; name it by --subnets"),
        ("broken.pt2", "broken.pt2: "),
        ("network.onnx", "pip install -e '.[onnx]'"),
        ("network.txt", "its name ends in none of .onnx .pte .pt2"),
    ):
        assert run(tmp_path, *flags, str(tmp_path / name))[0] == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def mistake(folder, name: str, content: str | None) -> str:
    if content is not None:
        (folder / name).write_text(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (lambda f: ["--model", "resnet21"], "unknown model 'resnet21'"),
        (lambda f: ["--weights", mistake(f, "none.pth", None)], "none.pth"),
        (lambda f: ["--evaluation", mistake(f, "no.json", None)], "--evaluation"),
        (lambda f: ["--subnets", "TT"], "'TT' has 2 flags"),
        (lambda f: ["--ways", "graph"], "needs a CUDA GPU"),
    ],
)
def test_a_mistake_is_one_line(flags: Callable, said: str, tmp_path, capsys):
    if "graph" in str(flags(tmp_path)) and torch.cuda.is_available():
        pytest.skip("there is one")
    assert run(tmp_path, *flags(tmp_path))[0] == 2
    err = capsys.readouterr().err.splitlines()
    assert said in err[-1]


def test_what_is_no_profile_is_named(tmp_path, capsys):
    for content in ("{}", "[", json.dumps({"about": {}, "subnets": {}, "rows": [{"no": 1}]})):
        path = mistake(tmp_path, "profile.json", content)
        assert simulate.main([path, "--target-ms", "5"]) == 2
        assert "not a profile that `python -m deploy.profile` wrote" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_every_way_runs_and_memory_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    code, found = run(tmp_path, "--device", "cuda", "--ways", "eager", "compiled", "graph")
    assert code == 0
    assert {row.way for row in found.rows} == {"eager", "compiled", "graph"}
    assert all((row.peak_mib is not None) == (row.way != "graph") for row in found.rows)
