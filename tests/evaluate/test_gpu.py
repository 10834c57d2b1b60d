"""Evaluation, prediction and latency on a GPU: what the CPU says, without waiting inside the loop."""

import re
from functools import partial

import pytest
import torch

import models
import train_adn
from tests.casts import Casts
from tests.filled import filled
from tests.pictures import jpeg, scene
from utils.data.loading import Batch
from utils.evaluate.accuracy import evaluate
from utils.evaluate.latency import latencies

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture
def model():
    model = models.resnet20(num_classes=10)
    model.load_state_dict(filled(model.state_dict()))
    return model.cuda()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_host_does_not_wait_inside_the_loop(model, dtype):
    batches = [Batch(torch.randn(8, 3, 32, 32).cuda(), torch.arange(8).cuda(), []) for _ in range(3)]

    class Loader(list):
        dataset = range(24)

    def on_device(loader):
        yield from loader[:1]  # the first batch may wait: libraries are loaded, kernels chosen
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield from loader[1:]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    autocast = partial(torch.autocast, "cuda", dtype=dtype, enabled=dtype is not None)
    with Casts(model) as operators:
        results = evaluate(model, Loader(batches), model.subnets, on_device, autocast)
    assert {result.images for result in results.values()} == {24}
    assert set(operators.of_weights.values()) == (set() if dtype is None else {1})


def test_latencies_are_measured_and_each_weight_is_cast_once(model):
    images = torch.randn(4, 3, 32, 32, device="cuda")
    with Casts(model) as operators:
        found = latencies(model, model.subnets, images, partial(torch.autocast, "cuda", dtype=torch.bfloat16))
    assert all(milliseconds > 0 for milliseconds in found.values())
    assert set(operators.of_weights.values()) == {1}


def test_a_gpu_calibrates_as_the_cpu_does(model):
    batches = [torch.randn(16, 3, 32, 32) for _ in range(3)]
    alike = models.resnet20(num_classes=10)
    alike.load_state_dict(model.state_dict())
    alike.calibrate(batches)
    model.calibrate(images.cuda() for images in batches)
    found = model.statistics()
    for prefix, statistics in alike.statistics().items():
        for name, expected in statistics.items():
            assert found[prefix][name].is_cuda
            torch.testing.assert_close(found[prefix][name].cpu(), expected, rtol=1e-2, atol=1e-2)  # TF32


@pytest.mark.parametrize("flags", ["", "--amp", "--torch-compile"])
def test_a_gpu_finds_the_accuracies_of_the_cpu(digits_run, tmp_path, capsys, flags):
    common = f"--test-only --model resnet20 --data-path digits --weights {digits_run / 'checkpoint.pth'} --skip-cfg all"
    accuracies = []
    for device in ("cpu", f"cuda {flags}"):
        line = f"{common} --output-dir {tmp_path} --no-picture --device {device}"
        assert train_adn.main(line.split()) == 0
        out = capsys.readouterr().out
        accuracies.append([float(top1) for top1 in re.findall(r"^Test: .* Acc@1 (\S+)", out, flags=re.MULTILINE)])
    assert len(accuracies[0]) == 8
    assert accuracies[1] == pytest.approx(accuracies[0], abs=1.2 if flags == "--amp" else 0.3)  # of 355 images: 4, 1


def test_a_gpu_predicts_what_the_cpu_predicts(digits_run, tmp_path, capsys):
    image = tmp_path / "image.jpg"
    image.write_bytes(jpeg(scene()))
    likeliest = []
    for device in ("cpu", "cuda"):
        weights = digits_run / "checkpoint.pth"
        line = f"--model resnet20 --weights {weights} --predict {image} --skip-cfg super base --device {device}"
        assert train_adn.main(line.split()) == 0
        likeliest.append(re.findall(r"^  (\w+)  [\d.]+ % (\d)", capsys.readouterr().out, flags=re.MULTILINE))
    assert [name for name, _ in likeliest[0]] == ["FFF", "TTT"]
    assert likeliest[0] == likeliest[1]
