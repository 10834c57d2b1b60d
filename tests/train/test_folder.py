"""The files of a run: a run goes on from its own, takes nothing from others, and says everything once."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import train_adn
from tests.launch import ENVIRONMENT, ROOT, command
from tests.runs import metrics
from utils.errors import UserError
from utils.train import folder

# Four steps an epoch, in a second.
DIGITS = (
    "--model resnet20 --data-path digits --train-images 64 --val-images 20 --batch-size 16 --lr 0.01 --print-freq 1 "
    "--train-crop-size 16 --val-resize-size 16 --val-crop-size 16 --workers 0"
)


def train(place: Path, flags: str) -> int:
    return train_adn.main([*DIGITS.split(), "--device", "cpu", "--output-dir", str(place), *flags.split()])


def content(path: Path) -> dict:
    return torch.load(path, weights_only=False)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """The folder of a finished run; do not write there."""
    place = tmp_path_factory.mktemp("earlier")
    assert train(place, "--epochs 5 --keep 2 --test-all-every 2") == 0
    return place


def copy_of(place: Path, to: Path) -> Path:
    to.mkdir()
    for path in place.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_run_keeps_its_newest_best_and_last_checkpoints(earlier):
    assert {path.name for path in earlier.glob("model_*")} == {"model_3.pth", "model_4.pth"}
    best, newest = content(earlier / "best.pth"), content(earlier / "checkpoint.pth")
    assert set(best) == {"model", "epoch", "args", "classes", "run", "trained", "versions"}
    assert newest["trained"] == ["FFF", "TTT"]
    assert len({newest["run"], best["run"], json.loads((earlier / "run.json").read_text())["run"]}) == 1


def test_metrics_tell_the_run_the_time_and_all_sub_networks(earlier):
    found = metrics(earlier)
    assert {line["run"] for line in found} == {content(earlier / "checkpoint.pth")["run"]}
    assert [line["time"] for line in found] == sorted(line["time"] for line in found)
    epochs = [line for line in found if line["event"] == "epoch"]
    tested = [sum(name.startswith("test_acc1_") for name in line) for line in epochs]
    assert tested == [2, 8, 2, 8, 8]  # all after every second epoch and the last
    assert all(line["seconds"] > 0 for line in epochs)
    steps = [line for line in found if line["event"] == "step"]
    assert steps[0]["loss_super"] == pytest.approx(2.3, abs=0.4)  # the cross entropy, not alpha times it
    assert "loss_super" not in epochs[0]


def test_a_new_run_takes_nothing_from_an_earlier_one(earlier, tmp_path):
    place = copy_of(earlier, tmp_path / "run")
    files = {path.name: path.read_bytes() for path in place.iterdir()}
    assert train(place, "--epochs 1 --seed 1") == 0
    (aside,) = place.glob("earlier-*")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == files
    assert len(metrics(place)) == 4 + 1 + 1  # steps, epoch, calibration
    assert {path.name for path in place.glob("model_*")} == {"model_0.pth"}


def test_a_run_started_again_before_it_saved_does_not_take_another_s_checkpoint(earlier, tmp_path, monkeypatch, capsys):
    place = copy_of(earlier, tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert train(place, "--epochs 1 --seed 1") == 0
    assert "Resumed" not in capsys.readouterr().out
    assert content(place / "checkpoint.pth")["args"].seed == 1
    assert train(place, "--epochs 1 --seed 1") == 0  # its own it takes
    assert "nothing left to train" in capsys.readouterr().out


def test_a_run_of_other_weights_started_again_goes_on_from_its_own(earlier, tmp_path):
    """Under a launcher that really starts it again, in a folder that another run has used."""
    place = copy_of(earlier, tmp_path / "run")
    source = ["--resume", earlier / "model_3.pth", "--epochs", "8", "--checkpoint-steps", "1"]
    launch = "-m torch.distributed.run --standalone --nproc_per_node=1 --max-restarts=1 train_adn.py"
    line = command(*launch.split(), *DIGITS.split(), "--output-dir", place, *source)
    with open(tmp_path / "output.txt", "w") as output:
        launcher = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output)
        deadline = time.monotonic() + 100
        while not (place / "checkpoint.pth").exists() or content(place / "checkpoint.pth")["progress"]["epoch"] < 6:
            assert time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
            time.sleep(0.02)
        (child,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        assert launcher.wait(timeout=100) == 0, (tmp_path / "output.txt").read_text()
    said = (tmp_path / "output.txt").read_text()
    assert f"Resumed {earlier / 'model_3.pth'}: epoch 4" in said
    assert f"Resumed {place / 'checkpoint.pth'}" in said
    assert len(list(place.glob("earlier-*"))) == 1
    places = [(line["event"], line["epoch"], line["step"]) for line in metrics(place)]
    assert len(places) == len(set(places)) == 4 * 5 + 1  # the last one is of calibration
    assert len(json.loads((place / "run.json").read_text())["starts"]) == 2


def test_a_refused_call_changes_no_file(earlier, tmp_path, capsys):
    place = copy_of(earlier, tmp_path / "run")
    before = {path: path.read_bytes() for path in place.rglob("*")}
    assert train(place, "--epochs 6 --resume auto --lr 0.3") == 2
    assert train(place, f"--epochs 6 --resume {earlier / 'best.pth'}") == 2
    assert "no checkpoint of a run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in place.rglob("*")} == before


def test_an_epoch_goes_on_in_batches_of_another_size_for_the_steps_that_are_left(tmp_path, capsys, monkeypatch):
    """Ten steps of five make the epoch's five, were it not for the steps that are left."""
    save = folder.save

    def stop_after_3(place: Path, content: dict) -> None:
        save(place, content)
        if content["progress"]["step"] == 3:
            raise UserError("the power is gone")

    monkeypatch.setattr(folder, "save", stop_after_3)
    assert train(tmp_path, "--epochs 1 --checkpoint-steps 1") == 2
    monkeypatch.undo()
    assert train(tmp_path, "--epochs 1 --resume auto --batch-size 4 --change-settings") == 0
    assert "[7/7]  eta: 0:00:00" in capsys.readouterr().out


def test_lines_after_the_point_of_return_are_dropped(tmp_path):
    step, epoch = {"event": "step"}, {"event": "epoch"}
    kept = [step | {"epoch": 0, "step": 4}, epoch | {"epoch": 0, "step": 4}, step | {"epoch": 1, "step": 2}]
    gone = [step | {"epoch": 1, "step": 3}, epoch | {"epoch": 1, "step": 4}, step | {"epoch": 2, "step": 1}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in kept + gone) + '{"event": "st')
    folder.trim_metrics(tmp_path, 1, 2)
    assert metrics(tmp_path) == kept


def test_saving_where_nothing_can_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        folder.save(tmp_path / "file", {"model": {}})


def test_what_cannot_be_removed_or_moved_is_said(tmp_path, monkeypatch):
    (tmp_path / ".checkpoint.pth.7.tmp").mkdir()  # a folder takes the place of a file without permission
    with pytest.raises(UserError, match=r"\.checkpoint\.pth\.7\.tmp: half written.*cannot be removed"):
        folder.remove_half_written(tmp_path)
    (tmp_path / "checkpoint.pth").write_text("old")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="cannot be moved"):
        folder.set_aside(tmp_path)
    assert (tmp_path / "checkpoint.pth").read_text() == "old"
