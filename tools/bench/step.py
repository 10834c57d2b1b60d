"""Training steps, in turn: ours as the training command makes it, the plain network alone, the reference's way."""

import copy
import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import models
import train_adn
from tools.bench.reference import ReferenceStep, convolutional
from tools.bench.results import Group
from utils import processes as distributed
from utils.data.loading import Batch, Data
from utils.evaluate.timing import Effort, Elsewhere, take_turns
from utils.flags import arguments
from utils.train import engine
from utils.train.log import Meters

CLASSES = 1000
CUDA_REPEATS = 5  # steps in a turn, between which the host may run ahead
TITLE, COMPILED = "training step", "training step, compiled"


@dataclass(frozen=True)
class Setup:
    model: str
    batch: int
    size: int
    device: torch.device
    amp: bool


class Alone(nn.Module):
    """A network of torchvision's own class, as if it were an adaptive one without any choice."""

    num_skippable_stages = 1
    super_net = base_net = (False,)

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain

    def embed(self, x: Tensor, networks: int = 1) -> tuple[Tensor]:
        return (x,)

    def forward(self, x: tuple[Tensor], skip: Sequence[bool] | None = None, embedded: bool = True) -> Tensor:
        return self.plain(x[0])

    def compile(self) -> None:
        self.plain.compile()


def measure(setup: Setup, effort: Effort) -> Group:
    """All ways of training this network for one step, without torch.compile."""
    cuda = setup.device.type == "cuda"
    makers: dict[str, Callable[[], Callable]] = {}
    if setup.amp:
        amp = ["--amp"] if not cuda else ["--amp", "--amp-dtype", "fp16"]
        makers |= {"ours": lambda: ours(setup, ["--amp"]), "plain alone": lambda: ours(setup, ["--amp"], alone=True)}
        if cuda:
            makers |= {
                "ours fp16": lambda: ours(setup, amp),
                "reference fp16": lambda: as_of_old(setup, reference, True),
            }
    else:
        makers |= {"plain alone": lambda: ours(setup, [], alone=True)}
    makers |= {"ours fp32": lambda: ours(setup, []), "reference fp32": lambda: as_of_old(setup, reference, False)}
    return _measured(setup, effort, TITLE, makers)


def measure_compiled(setup: Setup, effort: Effort) -> Group:
    amp = ["--amp"] if setup.amp else []
    makers = {
        "ours": lambda: ours(setup, amp),
        "ours compiled": lambda: ours(setup, [*amp, "--torch-compile"]),
        "plain alone compiled": lambda: ours(setup, [*amp, "--torch-compile"], alone=True),
    }
    return _measured(setup, effort, COMPILED, makers)


def _measured(setup: Setup, effort: Effort, title: str, makers: dict[str, Callable[[], Callable]]) -> Group:
    steps, memory = {}, {}
    for name, maker in makers.items():
        steps[name], memory[name] = _with_peak(maker, setup.device)
    repeats = CUDA_REPEATS if setup.device.type == "cuda" else 1
    samples = take_turns(steps, setup.device, effort, repeats, agree=distributed.from_main)
    return Group(
        part="step",
        title=title,
        model=setup.model,
        batch=setup.batch,
        samples=samples,
        macs=_macs(setup, list(makers)),
        memory={name: peak for name, peak in memory.items() if peak},
        about={"processes": str(distributed.world_size()), "image": str(setup.size)},
    )


def ours(setup: Setup, flags: list[str], alone: bool = False) -> Callable[[], None]:
    """One step of the training command, with a batch as its loader hands it over."""
    model = build(setup, alone)
    method = ["--method", "individual"] if alone else []
    optimizer = ["--opt", "sgd" if convolutional(model) else "adamw", "--lr", "0.001"]
    # the folder is needed only while the run is made: nothing is saved
    with tempfile.TemporaryDirectory() as folder:
        given = ["--model", setup.model, "--label-smoothing", "0.1", "--output-dir", folder]
        args = arguments.parser().parse_args([*given, *method, *optimizer, *flags])
        names = [str(number) for number in range(CLASSES)]
        run = train_adn.make_run(args, setup.device, Data(None, None, names, "random images"), model)
    run.state.model.train()
    meters = Meters(len(run.names), setup.device)
    images, targets = random_batch(setup)
    batch = Batch((images * 255).byte(), targets, [])
    if setup.device.type == "cuda":
        batch = Batch(batch.images.pin_memory(), targets.pin_memory(), [])
    return lambda: engine.take_step(run, [batch], meters)


def as_of_old(setup: Setup, make: Callable[..., Callable[[], object]], *arguments: object) -> Callable[[], object]:
    """A call of the reference; on a CPU in a process of its own, as ours keeps memory that the official one frees."""
    alone = setup.device.type == "cpu" and distributed.world_size() == 1
    return Elsewhere(make, setup, *arguments) if alone else make(setup, *arguments)


def reference(setup: Setup, amp: bool) -> ReferenceStep:
    images, targets = random_batch(setup)
    if setup.device.type == "cuda":
        images, targets = images.pin_memory(), targets.pin_memory()
    return ReferenceStep(build(setup), images, targets, setup.device, amp)


def build(setup: Setup, alone: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = models.build(setup.model, num_classes=CLASSES, image_size=setup.size)
    return (Alone(models.extract(model)) if alone else model).to(setup.device)


def random_batch(setup: Setup) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(setup.batch, 3, setup.size, setup.size, generator=generator)
    return images, torch.randint(CLASSES, (setup.batch,), generator=generator)


def _with_peak(maker: Callable[[], Callable], device: torch.device) -> tuple[Callable, int]:
    """The step, after a first few, and the bytes it held at most for itself: weights, optimizer, activations."""
    if device.type != "cuda":
        return maker(), 0
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    step = maker()
    for _ in range(3):  # cuDNN tries its algorithms first
        step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return step, torch.cuda.max_memory_allocated(device) - before


def _macs(setup: Setup, names: list[str]) -> dict[str, int]:
    """Of one image, forward; a backward pass is in proportion. Our step runs what both networks begin with once."""
    model = models.build(setup.model, num_classes=CLASSES, image_size=setup.size)
    alone = models.cost(model, model.super_net, setup.size).macs
    both = alone + models.cost(model, model.base_net, setup.size).macs
    shared = macs_of(model, "embed", setup.size)
    kinds = {"plain": alone, "ours": both - shared, "reference": both}
    return {name: kinds[name.split()[0]] for name in names}


def macs_of(model: nn.Module, method: str, size: int) -> int:
    """Multiply-accumulates of a method on one image."""
    images = torch.empty(1, 3, size, size, device="meta", requires_grad=True)
    # with gradients, attention is counted (see models.cost)
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        getattr(copy.deepcopy(model).eval().to("meta"), method)(images)
    return counter.get_total_flops() // 2
