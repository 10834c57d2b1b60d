"""Exact accuracy: of one process and of several, of one sub-network and of all at once."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import models
from tests.filled import filled
from tests.pictures import bad_images, image_folder
from utils.data.loading import Batch
from utils.evaluate.accuracy import Result, evaluate

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def collate(items):
    images, targets = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.stack(targets), [])


def pairs(batch):
    return batch.images, batch.targets


@pytest.fixture(scope="module")
def model():
    model = models.resnet18(num_classes=10)
    model.load_state_dict(filled(model.state_dict()))
    return model


def loader(count: int, classes: int, batch_size: int = 8, **options):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    targets = torch.randint(classes, (count,), generator=generator)
    return DataLoader(TensorDataset(images, targets), batch_size, collate_fn=collate, **options)


def test_counts_are_those_of_a_plain_loop(model):
    data = loader(21, 10)
    result = evaluate(model, data, [model.base_net], pairs)[model.base_net]
    right1 = right5 = loss = 0
    model.eval()
    with torch.no_grad():
        for images, targets, _ in data:
            logits = model(images, model.base_net)
            order = logits.argsort(dim=1, descending=True)
            right1 += sum(int(row[0] == target) for row, target in zip(order, targets, strict=True))
            right5 += sum(int(target in row[:5]) for row, target in zip(order, targets, strict=True))
            loss -= sum(float(row.double().log_softmax(0)[t]) for row, t in zip(logits, targets, strict=True))
    assert (result.images, result.correct1, result.correct5) == (21, right1, right5)
    assert result.loss == pytest.approx(loss / 21, rel=1e-12)
    assert str(result) == f"Acc@1 {100 * right1 / 21:.3f} Acc@5 {100 * right5 / 21:.3f}"


def test_all_at_once_equals_one_by_one_image_for_image(model, record_property):
    data = loader(40, 10, batch_size=20)
    start = time.perf_counter()
    together = evaluate(model, data, model.subnets, pairs)
    middle = time.perf_counter()
    one_by_one = {skip: evaluate(model, data, [skip], pairs)[skip] for skip in model.subnets}
    record_property("time_together_over_one_by_one", (middle - start) / (time.perf_counter() - middle))
    assert together == one_by_one  # the losses too, to the last bit: so every image's logits are the same
    assert len({result.loss for result in together.values()}) == 16


def test_fewer_than_five_classes_have_no_wrong_top5():
    model = models.resnet18(num_classes=3)
    result = evaluate(model, loader(7, 3), [model.super_net], pairs)[model.super_net]
    assert result.top5 == 100


def test_every_module_is_again_in_the_mode_it_was_in(model):
    model.train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    evaluate(model, loader(4, 10), [model.super_net], pairs)
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes


def test_an_image_lost_on_the_way_is_an_error_not_a_figure(model):
    with pytest.raises(RuntimeError, match="evaluated 8 images, expected 9"):
        evaluate(model, loader(9, 10, drop_last=True), [model.super_net], pairs)


def test_nothing_evaluated_is_no_division_by_zero():
    assert Result(0, 0, 0, 0.0).top1 == 0


def test_one_two_and_three_processes_find_the_same_to_the_last_image(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    flags = f"--test-only --device cpu --weights {tmp_path / 'weights.pth'} --data-path digits --batch-size 32"
    flags += f" --skip-cfg TTFF FFFF TTTT --latency-batch 0 --no-picture --output-dir {tmp_path}"
    starts = {1: [sys.executable], 2: [*TORCHRUN, "--nproc_per_node=2"], 3: [*TORCHRUN, "--nproc_per_node=3"]}
    runs = {
        processes: subprocess.Popen(
            [*start, "train_adn.py", *flags.split()], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        for processes, start in starts.items()
    }
    outputs = {processes: run.communicate(timeout=240)[0] for processes, run in runs.items()}
    assert [run.returncode for run in runs.values()] == [0, 0, 0]
    lines = {processes: re.findall(r"^Test: .*", output, flags=re.MULTILINE) for processes, output in outputs.items()}
    assert lines[1] == lines[2] == lines[3]
    assert [line.split()[1] for line in lines[1]] == ["TTFF", "FFFF", "TTTT"]
    (images,) = {int(re.search(r"(\d+) images", line)[1]) for line in lines[1]}
    assert images % 2 == 1
    assert images % 3 != 0
    assert "in 3 process(es)" in outputs[3]


def test_shares_that_are_empty_or_hold_nothing_but_a_corrupt_image(tmp_path):
    folder = image_folder(tmp_path / "data", train=1, val=1)
    bad = folder / "val" / "dog" / "0.JPEG"
    bad_images(tmp_path / "bad")["truncated"].replace(bad)
    command = [
        *TORCHRUN,
        "--nproc_per_node=3",
        str(ROOT / "tests" / "evaluate" / "accuracy_worker.py"),
        str(folder),
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, timeout=240)
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [report["own"] for report in reports] == [1, 1, 0]
    assert all(report == {**reports[0], "own": report["own"]} for report in reports)
    assert set(reports[0]["results"]) == {"FFFF", "FFFT", "FFTF"}
    for result in reports[0]["results"].values():
        assert result["images"] == 1
        assert [name.split(" ")[0] for name in result["corrupt"]] == [str(bad)]
    assert str(bad) in reports[0]["refusal"]
    assert reports[0]["training"] is True
