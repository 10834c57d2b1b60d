"""The page of measurements: a line a sub-network, with the ratio of calls that took turns."""

import math
from pathlib import Path

import pytest

from deploy import latency
from deploy.switch import Wanted
from tests.deploy.shallow import batch, shallow


class Form:
    """Files that are not there; the one of all depths takes three times as long."""

    @staticmethod
    def save(wanted: Wanted, path: Path) -> None:
        assert len(wanted.subnets) == 1

    @staticmethod
    def runner(path: Path, threads: int):
        assert threads == 1
        return lambda images, skip: math.factorial(3000 if path.name == "all.onnx" else 1000)


def test_each_sub_network_is_compared_with_itself(tmp_path: Path) -> None:
    model = shallow("swin")
    lines = latency.latencies(Form, Wanted(model, model.subnets, batch(), True, {}), "swin_t", tmp_path, rounds=5)
    rows = [line.split("|")[1:-1] for line in lines[3:]]
    assert [row[0].strip() for row in rows] == ["FF", "FT", "TF", "TT"]
    assert all(float(row[4].split()[0]) > 1.5 for row in rows)


def test_a_page_is_written_added_to_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(latency, "measure", lambda *arguments: "table")
    (tmp_path / "file").touch()
    assert latency.main(["-o", str(tmp_path / "file" / "page.md")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    page = tmp_path / "page.md"
    assert [latency.main(["-o", str(page)]), latency.main(["--add", "-o", str(page)])] == [0, 0]
    assert page.read_text() == f"{latency.HEAD}\ntable\ntable"
