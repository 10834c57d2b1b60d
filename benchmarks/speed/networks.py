"""A network's ways, which take turns: of training it for a step, and of running its sub-networks."""

import copy
import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
import presets
import train_adn
from benchmarks.speed.results import ALL, LATENCY, SINGLE, STEP, SWITCHING, Group
from tools import assemble
from utils import processes
from utils.data.loading import Batch, Data
from utils.errors import UserError
from utils.evaluate.timing import Effort, take_turns
from utils.flags import arguments
from utils.flags.data import complete
from utils.train import engine
from utils.train.log import Meters

CLASSES, TOPK = 1000, 500
Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A network on a device and the batch it works on."""

    name: str
    batch: int
    pixels: int
    device: torch.device
    amp: bool  # ours and the plain network in 16 bits
    compiled: bool  # measure torch.compile as well

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        try:
            return models.build(self.name, num_classes=CLASSES, image_size=self.pixels).to(self.device)
        except ValueError as error:
            raise UserError(f"--model {self.name}: {error}") from None

    def random_batch(self) -> tuple[Tensor, Tensor]:
        """Images as bytes and their labels, on the host."""
        images = torch.randint(256, (self.batch, 3, self.pixels, self.pixels), dtype=torch.uint8)
        labels = torch.randint(CLASSES, (self.batch,))
        return (images.pin_memory(), labels.pin_memory()) if self.device.type == "cuda" else (images, labels)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp)


def our_step(case: Case, flags: str) -> Call:
    """A step as `train_adn.py` with these flags makes it, on a batch as its loader hands it over, copy included.

    The only place that knows how the command comes to its step.
    """
    with tempfile.TemporaryDirectory() as folder:  # needed while the run is made: nothing is saved
        args = arguments.parser().parse_args([*flags.split(), "--output-dir", folder])
        args.device = str(case.device)
        complete(args)
        assemble.seed_everything(args)
        model = assemble.build_model(args, CLASSES).to(case.device).train()
        names = [str(number) for number in range(CLASSES)]
        run = train_adn.make_run(args, case.device, Data(None, None, names, "random images"), model)
    meters, batch = Meters(len(run.names), case.device), Batch(*case.random_batch(), [])
    return lambda: engine.take_step(run, [batch], meters)


def plain_step(case: Case, compiled: bool) -> Call:
    """torchvision's network alone, trained by a plain loop with the means that ours has."""
    network = models.extract(case.build()).train()
    network.to(memory_format=layout(network))
    to_float = presets.ToFloat(memory_format=layout(network)).to(case.device)
    optimizer, parallel, batch = optimizer_of(network, fused=True), in_parallel(network), case.random_batch()
    if compiled:
        parallel.compile()

    def step() -> None:
        images, targets = (tensor.to(case.device, non_blocking=True) for tensor in batch)
        optimizer.zero_grad()
        with case.autocast():
            loss = F.cross_entropy(parallel(to_float(images)), targets, label_smoothing=0.1)
        loss.backward()
        optimizer.step()

    return step


def reference_step(case: Case, amp: bool) -> Call:
    """The official implementation's way, rebuilt from a description of it.

    Convolutions in NCHW; float images copied while the host waits; a forward and a backward pass per network, each of
    which reduces all gradients if there are several processes; the optimizer as its constructor gives it; after every
    step the losses and accuracies of both networks, fetched from the device one by one.
    """
    model = case.build().train()
    optimizer, parallel = optimizer_of(model), in_parallel(model, find_unused_parameters=True)
    scaler = torch.amp.GradScaler(case.device.type, enabled=amp)
    autocast = partial(torch.autocast, case.device.type, dtype=torch.float16, enabled=amp)
    pixels, labels = case.random_batch()
    batch = (pixels / 255).pin_memory() if pixels.is_pinned() else pixels / 255, labels

    def step() -> None:
        images, targets = (tensor.to(case.device) for tensor in batch)
        optimizer.zero_grad()
        with autocast():
            logits_super = parallel(images, model.subnets[0])
            loss_super = 0.5 * F.cross_entropy(logits_super, targets, label_smoothing=0.1)
        scaler.scale(loss_super).backward()
        with autocast():
            logits_base = parallel(images, model.subnets[-1])
            teacher, likeliest = logits_super.detach().topk(TOPK, dim=1)
            student = F.log_softmax(logits_base.gather(1, likeliest), dim=1)
            loss_base = 0.5 * F.kl_div(student, F.softmax(teacher, dim=1), reduction="batchmean")
        scaler.scale(loss_base).backward()
        scaler.step(optimizer)
        scaler.update()
        for loss, logits in ((loss_super, logits_super), (loss_base, logits_base)):
            right = logits.topk(5, dim=1).indices == targets[:, None]
            loss.item(), right[:, 0].float().sum().item(), right.float().sum().item()

    return step


def layout(model: nn.Module) -> torch.memory_format:
    """Channels-last suits networks of convolutions; a transformer has but one."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    return torch.channels_last if convolutions > 1 else torch.contiguous_format


def optimizer_of(model: nn.Module, fused: bool | None = None) -> torch.optim.Optimizer:
    if layout(model) == torch.channels_last:
        return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=fused)
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=fused)


def in_parallel(model: nn.Module, **options: bool) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model, **options) if processes.world_size() > 1 else model


def steps(case: Case, effort: Effort) -> Group:
    """All ways of training this network for one step, and on a GPU the bytes each holds at most."""
    cuda, model = case.device.type == "cuda", case.build()
    fp32 = f"--model {case.name} --batch-size {case.batch} --train-crop-size {case.pixels} --label-smoothing 0.1 "
    fp32 += f"--lr 0.001 --opt {'sgd' if layout(model) == torch.channels_last else 'adamw'}"
    main = f"{fp32} --amp --amp-dtype bf16" if case.amp else fp32
    makers = {"plain": partial(plain_step, case, compiled=False), "ours": partial(our_step, case, main)}
    makers["ours fp32"] = partial(our_step, case, fp32)
    makers["reference fp32"] = partial(reference_step, case, amp=False)
    if cuda:
        makers["ours fp16"] = partial(our_step, case, f"{fp32} --amp --amp-dtype fp16")
        makers["reference fp16"] = partial(reference_step, case, amp=True)
    if case.compiled:
        makers["plain compiled"] = partial(plain_step, case, compiled=True)
        makers["ours compiled"] = partial(our_step, case, f"{main} --torch-compile")
    made, memory = {}, {}
    for way, make in makers.items():
        gc.collect()
        before = torch.cuda.memory_allocated() if cuda else 0
        made[way] = make()
        for number in range(4 if cuda else 0):
            if number == 3:  # cuDNN tries its algorithms first
                torch.cuda.reset_peak_memory_stats()
            made[way]()
            memory[way] = torch.cuda.max_memory_allocated() - before
    samples = take_turns(made, case.device, effort, repeats=5 if cuda else 1)  # the host may run ahead
    alone, base = (model.cost(subnet, case.pixels).macs for subnet in (model.subnets[0], model.subnets[-1]))
    macs = {way: alone if way.startswith("plain") else alone + base for way in made}
    about = {"type": "bf16" if case.amp else "fp32", "pixels": case.pixels, "processes": processes.world_size()}
    return Group(STEP, case.name, case.batch, samples, macs, memory, about)


def forwards(title: str, case: Case, effort: Effort) -> Group:
    """Ways of running sub-networks: evaluation mode, 16 bits if wanted, no gradients."""
    model = case.build().eval()
    model.to(memory_format=layout(model))
    to_float = presets.ToFloat(memory_format=layout(model)).to(case.device)
    images, macs = to_float(case.random_batch()[0].to(case.device)), {}
    make = {LATENCY: each, SINGLE: partial(single, case.compiled), ALL: together, SWITCHING: switching}[title]
    with torch.inference_mode(), case.autocast():  # which keeps the weights that it casts until it is left
        ways = make(model, images)
        samples = take_turns(ways, case.device, effort)
    if title in (LATENCY, SINGLE):
        macs = {way: model.cost(model.parse(way.split()[0]), case.pixels).macs for way in ways if way != "plain"}
    about = {"type": "bf16" if case.amp else "fp32", "pixels": case.pixels}
    return Group(title, case.name, case.batch, samples, macs, about=about)


def each(model: nn.Module, images: Tensor) -> dict[str, Call]:
    """Every sub-network, and torchvision's network beside them."""
    ways = {model.name(subnet): partial(model, images, subnet) for subnet in model.subnets}
    return {**ways, "plain": partial(models.extract(model), images)}


def single(compiled: bool, model: nn.Module, images: Tensor) -> dict[str, Call]:
    """Super-net and base-net: eager, compiled, as a CUDA graph, which launches all kernels of a call at once."""
    fast, ways = copy.deepcopy(model), {}
    if compiled:
        fast.compile()
    for subnet in (model.subnets[0], model.subnets[-1]):
        name = model.name(subnet)
        ways[f"{name} eager"] = eager = partial(model, images, subnet)
        if compiled:
            ways[f"{name} compiled"] = partial(fast, images, subnet)
        if images.is_cuda:
            for _ in range(3):  # what is chosen and allocated in the first calls must not be recorded
                eager()
            with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
                eager()
            ways[f"{name} CUDA graph"] = graph.replay
    return ways


def together(model: nn.Module, images: Tensor) -> dict[str, Call]:
    """All sub-networks: in runs of their own, in one walk, and in the reference's runs (NCHW, fp32, waiting)."""
    plain, contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format), images.contiguous()

    def separate() -> None:
        for subnet in model.subnets:
            model(images, subnet)

    def reference() -> None:
        with torch.autocast(images.device.type, enabled=False):
            for subnet in model.subnets:
                plain(contiguous, subnet).argmax(1).sum().item()

    return {"separate runs": separate, "one walk": partial(model.forward_all, images), "reference's runs": reference}


def switching(model: nn.Module, images: Tensor) -> dict[str, Call]:
    """Super-net and base-net by turns, against the same calls sorted."""
    turns = [model.subnets[0], model.subnets[-1]] * 8
    orders = {"sorted": turns[::2] + turns[1::2], "alternating": turns}
    return {name: lambda order=order: [model(images, s) for s in order] for name, order in orders.items()}
