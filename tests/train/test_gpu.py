"""Training on a GPU: what the CPU computes, without waiting, to the bit again if asked, compiled, captured, by two."""

import functools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import methods
import train_adn
from tests.launch import WITH_GPUS, launch
from tests.runs import Command, assert_same_run, kill_all, metrics, steps_done, wait_for_steps
from tests.tiny import SIZE, TINY, batch, tiny
from tests.train.test_resume import data as data  # the images of its runs
from tests.train.test_train import DIGITS, graphs_after_each_epoch
from utils.data.loading import Batch
from utils.flags.arguments import parser
from utils.setup import Machine
from utils.train import engine
from utils.train import run as training
from utils.train.log import Meters

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Every test begins with exact products of float32 and usual kernels, whatever a run before it has set."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def make_run(model: torch.nn.Module, device: torch.device, precision: str, folder: Path, flags: str = "") -> engine.Run:
    """A run of a network for 7 classes, ready to take steps."""
    args = parser(methods).parse_args(["--output-dir", str(folder), "--lr", "0.1", *flags.split()])
    method = methods.METHODS[args.method](args, model)
    run = training.make_run(args, Machine(device, precision), list("abcdefg"), model, method)
    if precision == "fp16":  # as a run finds it after some steps: its first ones may overflow and be left out
        run.state.scaler.load_state_dict({**run.state.scaler.state_dict(), "scale": 128.0})
    return run


# How far off the direction of a step may be. The CPU's own are off by up to 0.0001, 0.11, 0.035 and 0.0005.
TOLERANCE = {"fp32": 0.002, "bf16": 0.25, "fp16": 0.1, "fp32, train mode": 0.02}


def step_of(model: torch.nn.Module, device: torch.device, precision: str, folder: Path) -> tuple:
    """By how much a step moves all weights, and its losses. `precision` is one of the TOLERANCE."""
    run = make_run(model, device, precision[:4], folder, "--clip-grad-norm 1 --label-smoothing 0.1 --fpn")
    for module in model.modules():
        if "train" in precision and isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    images = batch(8).to(device, before[0].dtype).contiguous(memory_format=run.on_device.to_float.memory_format)
    meters = Meters(2, device)
    engine.take_step(run, [Batch(images, torch.arange(8, device=device) % 7, [])], 1, meters)
    moved = [(now.detach() - then).double().flatten() for now, then in zip(model.parameters(), before, strict=True)]
    return torch.cat(moved).cpu(), meters.values()[0, :, 0]


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The step of the CPU in float64, computed once."""
    folder = tmp_path_factory.mktemp("exact")
    return functools.cache(lambda name, precision: step_of(tiny(name).double(), CPU, precision, folder))


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", TINY)
def test_a_step_is_that_of_the_cpu_in_float64(name, precision, exact, tmp_path):
    """In eval mode: statistics of so few values magnify rounding, in 16 bits beyond comparison; and no dropout."""
    expected, expected_losses = exact(name, "fp32, train mode" if "train" in precision else "fp32")
    model = tiny(name)
    found, losses = step_of(model, GPU, precision, tmp_path)
    assert ((found - expected).norm() / expected.norm()).item() < TOLERANCE[precision]
    torch.testing.assert_close(losses, expected_losses, rtol=TOLERANCE[precision] / 2, atol=1e-3)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("flags", ["--opt sgd", "--opt adamw", "--opt rmsprop"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_host_waits_for_the_device_nowhere_in_a_step(flags, precision, tmp_path):
    if precision == "fp16" and "rmsprop" in flags:
        pytest.skip("torch's unfused optimizers ask the device whether gradients overflowed")
    flags += " --clip-grad-norm 1 --mixup-alpha 0.2 --cutmix-alpha 1 --fpn --subpath-topk 3"
    flags += " --model-ema --model-ema-steps 1"
    run = make_run(tiny("convnext_tiny").train(), GPU, precision, tmp_path, flags)
    images, targets = batch(8).to(GPU), torch.arange(8, device=GPU) % 7
    meters = Meters(2, GPU)

    def steps(count: int) -> None:
        for _ in range(count):
            engine.take_step(run, [Batch(images, targets, [])], 1, meters)
            run.state.progress.step += 1

    steps(2)  # libraries are loaded, kernels chosen
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(4)  # mixup and cutmix are drawn
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert meters.values()[0, :, 3].tolist() == [48, 48]


PRECISIONS = ["", "--amp --amp-dtype bf16", "--amp --amp-dtype fp16", "--amp --channels-last", "--amp --torch-compile"]


@pytest.mark.parametrize("flags", PRECISIONS)
def test_the_command_trains_on_a_gpu_as_on_the_cpu(tmp_path, flags):
    losses = []
    for device in ("cpu", f"cuda {flags}"):
        folder = tmp_path / device.split()[0]
        line = f"{DIGITS} --epochs 2 --print-freq 1 --model-ema --device {device} --output-dir {folder}"
        assert train_adn.main(line.split()) == 0
        losses.append([line["loss_super"] for line in metrics(folder) if line["event"] == "step"])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert "memory_mb" in metrics(folder)[0]
    assert json.loads((folder / "run.json").read_text())["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("flags", ["", "--amp --amp-dtype bf16", "--amp --amp-dtype fp16"])
def test_a_deterministic_run_that_is_killed_and_continued_ends_with_the_same_bits(data, tmp_path, flags):
    command = Command(data, 1, "--device", "cuda", "--deterministic", *flags.split())
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command.whole(whole, env=WITH_GPUS)
    choose = random.Random(3)
    process = command.start(broken, "--resume", "auto", "--workers", "2", env=WITH_GPUS)
    wait_for_steps(process, broken, choose.randint(2, 5))
    time.sleep(choose.random() * 0.2)
    kill_all(process)
    assert steps_done(broken) > 0
    assert "Resumed" in command.whole(broken, "--resume", "auto", env=WITH_GPUS)
    assert_same_run(whole, broken)


@pytest.mark.parametrize("flags", ["", "--amp"])
def test_all_graphs_of_a_compiled_run_are_made_in_its_first_epoch(monkeypatch, tmp_path, flags):
    line = f"--train-images 50 --device cuda {flags} --output-dir {tmp_path}"
    counts = graphs_after_each_epoch(monkeypatch, line)
    assert counts[0] > 0
    assert counts == counts[:1] * 3


@pytest.mark.parametrize("flag", [False, True], ids=["super", "base"])
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_captured_sub_network_gives_what_it_gives_uncaptured(name, flag):
    """The whole network, told which sub-network to run; and the same one as an ordinary network."""
    model = tiny(name).to(GPU)
    skip = (flag,) * model.num_skippable_stages
    first, second = torch.randn(2, 4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(GPU)
    for network in (lambda images: model(images, skip), model.view(skip)):
        images = first.clone()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # kernels are loaded and chosen, memory is taken, before the capture
            for _ in range(3):
                network(images)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = network(images)
        for given in (first, second):
            images.copy_(given)
            graph.replay()
            torch.testing.assert_close(logits, network(given), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits.cpu(), tiny(name)(second.cpu(), skip), rtol=1e-2, atol=1e-2)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("by_two") / "results.json"
    done = launch("tests/train/gpus_worker.py", path, "cuda", processes=2, env=WITH_GPUS)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@two_gpus
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_16", "swin_t"])
def test_two_gpus_compute_the_gradients_and_statistics_of_the_whole_batch(by_two, name):
    """Networks of batch norms by --sync-bn; in float64, so that only a mistake makes a difference."""
    assert by_two[name]["gradients"] < 1e-9
    assert by_two[name]["statistics"] < 1e-9
    assert by_two[name]["same everywhere"]


@two_gpus
def test_the_command_trains_on_two_gpus(tmp_path):
    flags = f"{DIGITS} --amp --sync-bn --model-ema --epochs 2 --device cuda --output-dir {tmp_path}"
    done = launch("train_adn.py", *flags.split(), processes=2, env=WITH_GPUS)
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cuda:0, bf16" in done.stdout
    assert len(metrics(tmp_path)) == 4
