"""The command: a run that is killed and continued, its tests in one process and in two, and what a user gets wrong."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train_detection
from benchmarks import scenes
from tests.launch import command, together
from tests.runs import assert_same, content, kill_all, metrics, start, steps_done, wait_for_steps
from utils.detection.coco import LikeShapes, read_part

NETWORK = "--detector mask_rcnn --model mobilenet_v2 --fpn-width 8 --min-size 64 --max-size 96 --rois 16"
FLAGS = f"{NETWORK} --train-norms --batch-size 4 --workers 0 --lr 0.01 --epochs 2 --checkpoint-steps 1 --print-freq 1"
STEPS = 8


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    assert scenes.main([str(folder), "--train", "11", "--val", "5", "--side", "64"]) == 0
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(data, folder) == 0
    return folder


def run(data: Path, folder: Path, *more: str) -> int:
    return train_detection.main([*FLAGS.split(), "--data-path", str(data), "--output-dir", str(folder), *more])


def test_a_killed_run_goes_on_to_the_same_bits(data: Path, whole: Path, tmp_path: Path) -> None:
    line = ("train_detection.py", *FLAGS.split(), "--data-path", data, "--output-dir", tmp_path)
    process = start(command(*line), tmp_path)
    wait_for_steps(process, tmp_path, 2)
    kill_all(process)
    assert 2 <= steps_done(tmp_path) < STEPS, (tmp_path / "output.txt").read_text()
    assert run(data, tmp_path, "--resume", "auto") == 0
    one, other = content(whole), content(tmp_path)
    assert one["progress"] == other["progress"]
    assert_same(one["model"], other["model"], "model")
    assert steps_done(tmp_path) == STEPS
    assert {"test_box_AP50_super", "test_mask_AP_base"} <= metrics(tmp_path)[-1].keys()


def test_two_processes_are_one_evaluation(data: Path, whole: Path, tmp_path: Path) -> None:
    line = ["--test-only", "--weights", whole / "checkpoint.pth", "--data-path", data, "--skip-cfg", "FFFFF", "base"]
    line = list(map(str, [*line, "--workers", 0, "--batch-size", 1, "--calibrate", 2, "--output-dir"]))
    assert train_detection.main([*line, str(tmp_path / "one")]) == 0
    done = together("train_detection.py", *line, tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "subnets.json").read_text())["subnets"] for name in ("one", "two"))
    for row in (*one, *two):
        assert row.pop("latency_ms") > 0
    assert one == two
    assert [row["name"] for row in one] == ["TTTTT", "FFFFF"]
    assert one[0]["gmacs"] < one[1]["gmacs"]


def test_one_depth_trains_alone(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = FLAGS.replace("mask_rcnn", "retinanet").replace("--rois 16", "").split()
    line = [*base, "--epochs", "1", "--method", "individual", "--skip-cfg", "base", "--data-path", str(data)]
    assert train_detection.main([*line, "--output-dir", str(tmp_path)]) == 0
    assert "TTTTT box AP" in capsys.readouterr().out


def test_a_classification_checkpoint_starts_the_body(data: Path, tmp_path: Path) -> None:
    import models

    network = models.build("mobilenet_v2", num_classes=7)
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)
    torch.save({"model": network.state_dict()}, tmp_path / "classifier.pth")
    more = ["--init-from", str(tmp_path / "classifier.pth"), "--epochs", "1", "--base-labels", "0"]
    line = FLAGS.replace("--train-norms", "").split()
    line += ["--data-path", str(data), "--output-dir", str(tmp_path), *more]
    assert train_detection.main(line) == 0
    trained = torch.load(tmp_path / "checkpoint.pth", weights_only=False)["model"]
    start, changed = network.state_dict(), set()
    for name, value in trained.items():
        own = name.removeprefix("backbone.body.")
        if own != name and not torch.equal(value, start[own]):
            changed.add(own)
    assert "features.2.1.norm_skip.running_mean" not in changed
    assert changed
    assert not any("norm" in name or name.startswith(("features.0.", "features.2.")) for name in changed)


def test_mistakes_are_one_line(data: Path, whole: Path, tmp_path: Path, mistake: Callable[..., str]) -> None:
    def said(*line: object, data: Path = data) -> str:
        places = ["--data-path", data, "--output-dir", tmp_path / "out"]
        line = mistake(train_detection.main, *FLAGS.split(), *places, *line)
        assert line.startswith("train_detection.py: error: ")
        return line

    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    annotations = broken / "annotations" / "instances_train.json"
    content = json.loads(annotations.read_text())
    (broken / "train" / "000003.png").rename(broken / "train" / "other.png")
    assert "000003.png of instances_train.json is missing" in said(data=broken)
    (broken / "train" / "other.png").rename(broken / "train" / "000003.png")
    content["annotations"][4]["category_id"] = 77
    annotations.write_text(json.dumps(content))
    assert "annotation 5 is of category 77, which is not listed" in said(data=broken)
    annotations.write_text("{}")
    assert "lacks 'images'" in said(data=broken)
    annotations.unlink()
    assert "instances_train*.json, there is none" in said(data=broken)
    content["annotations"][4] |= {"category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    annotations.write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pycocotools", None)
        assert "polygons need a package that is not here: pip install pycocotools" in said(data=broken)
    frozen = [*NETWORK.split(), "--data-path", data, "--workers", "0"]
    assert "give --init-from or --train-norms" in mistake(train_detection.main, *frozen)
    weights = "--test-only", "--weights", whole / "checkpoint.pth"
    assert "has 4 flags; the model has 5" in said(*weights, "--skip-cfg", "TTTT")
    other = "--detector", "faster_rcnn", "--resume", whole / "checkpoint.pth"
    assert "other settings (detector mask_rcnn → faster_rcnn" in said(*other)
    assert "--test-only needs --weights" in mistake(train_detection.main, "--data-path", "x", "--test-only")


def test_batches_are_of_like_shapes_and_show_every_image() -> None:
    groups = torch.tensor([0] * 7 + [1] * 5 + [2]).numpy()
    shares = [LikeShapes(groups, 2, rank, 2, seed=1) for rank in range(2)]
    seen = []
    for share in shares:
        share.set_epoch(3)
        batches = list(share)
        assert len(share) == len(batches) == share.remaining() == 5
        share.set_epoch(3, start=4)
        assert list(share) == batches[2:]
        seen += [batches]
    for pair in zip(*seen, strict=True):
        keys = [key for batch in pair for key in batch]
        assert len(set(keys)) == 4
        assert len({groups[index] for _, index, _ in keys}) == 1
    assert {index for batches in seen for batch in batches for _, index, _ in batch} == set(range(13))


def test_a_mirrored_scene_has_its_objects_where_they_are(data: Path) -> None:
    plain, mirrored = (read_part(data, "train", to_train=True, with_masks=True, hflip_prob=p)[0] for p in (0.0, 1.0))
    assert torch.equal(plain[0].flip(-1), mirrored[0])
    for image, target in (plain, mirrored):
        for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
            rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
            assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert mask.shape == image.shape[1:]


def test_a_run_is_repeated_by_its_settings(whole: Path) -> None:
    said = json.loads((whole / "run.json").read_text())["args"]
    again = vars(train_detection.parser(train_detection.methods).parse_args(["--from-run", str(whole / "run.json")]))
    of_one_call = {"output_dir", "from_run", "workers"}
    assert {name for name, value in said.items() if again[name] != value} <= of_one_call
