"""What takes turns: ways of training a network for a step, of running its sub-networks, of reading JPEG files."""

import copy
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.datasets.folder import pil_loader
from torchvision.io import write_jpeg
from torchvision.transforms import autoaugment, transforms

import methods
import models
import presets
import train_adn
from benchmarks.speed.results import LATENCY, SWITCHING, Group
from deploy.measure import recorded
from utils import processes, setup
from utils.data.loading import Batch
from utils.errors import UserError
from utils.evaluate.latency import Effort, take_turns
from utils.flags import arguments
from utils.flags.data import fill_defaults
from utils.train import engine, run
from utils.train.log import Meters

CLASSES, TOPK = 1000, 500
Call, Chain = Callable[[], object], Callable[[str], Tensor]


@dataclass(frozen=True)
class Case:
    """A network on a device and the batch it works on."""

    name: str
    batch: int
    pixels: int
    device: torch.device
    compiled: bool  # torch.compile as well

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        try:
            return models.build(self.name, num_classes=CLASSES, image_size=self.pixels).to(self.device)
        except ValueError as error:
            raise UserError(f"--model {self.name}: {error}") from None

    def random_batch(self, float32: bool = False) -> tuple[Tensor, Tensor]:
        """Images, as bytes or as floats, and their labels, on the host."""
        images, labels = torch.randint(256, (self.batch, 3, *2 * [self.pixels])), torch.randint(CLASSES, (self.batch,))
        images = images / 255 if float32 else images.byte()
        return (images.pin_memory(), labels.pin_memory()) if self.device.type == "cuda" else (images, labels)


def our_step(case: Case, flags: str) -> Call:
    """A step as `train_adn.py` makes it, on a batch as its loader hands it over. Only here the way to it is known."""
    with tempfile.TemporaryDirectory() as folder:  # needed while the run is made: nothing is saved
        args = arguments.parser(methods).parse_args([*flags.split(), "--output-dir", folder])
        fill_defaults(args, methods.defaults(args))
        machine = setup.set_up(case.device, args.seed, args.deterministic, args.amp_dtype if args.amp else None)
        model = train_adn.build(args, CLASSES, case.pixels, None).train()
        method = methods.METHODS[args.method](args, model)
        names = [str(number) for number in range(CLASSES)]
        training = run.make_run(args, machine, names, model, method)
    images, labels = case.random_batch()
    if args.sizes:
        images = [F.interpolate(images, (size, size)) for size in args.sizes]
    meters, batch = Meters(len(method.roles), case.device), Batch(images, labels, [])
    return lambda: engine.take_step(training, training.on_device([batch]), 1, meters)


def reference_step(case: Case, amp: bool) -> Call:
    """The official implementation's way, rebuilt from a description of it.

    Convolutions in NCHW; float images copied while the host waits; a forward and a backward pass per network, each of
    which reduces all gradients if there are several processes; the optimizer as its constructor gives it; after every
    step the losses and accuracies of both networks, fetched from the device one by one.
    """
    model = parallel = case.build().train()
    sgd = partial(torch.optim.SGD, momentum=0.9)
    optimizer = (sgd if convolutional(model) else torch.optim.AdamW)(model.parameters(), lr=1e-3, weight_decay=1e-4)
    if processes.world_size() > 1:
        parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    scaler = torch.amp.GradScaler(case.device.type, enabled=amp)
    autocast = partial(torch.autocast, case.device.type, dtype=torch.float16, enabled=amp)
    batch = case.random_batch(float32=True)

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


def steps(part: str, case: Case, effort: Effort) -> list[Group]:
    """All ways of training this network for one step, and on a GPU the bytes each holds at most."""
    cuda, model = case.device.type == "cuda", case.build()
    fp32 = f"--model {case.name} --batch-size {case.batch} --train-crop-size {case.pixels} --label-smoothing 0.1 "
    fp32 += f"--lr 0.001 --opt {'sgd' if convolutional(model) else 'adamw'}"
    main = f"{fp32} --amp --amp-dtype bf16"
    alone = f"{main} --method individual --skip-cfg super"
    makers = {"alone": partial(our_step, case, alone), "ours": partial(our_step, case, main)}
    makers |= {"ours fp32": partial(our_step, case, fp32), "reference fp32": partial(reference_step, case, amp=False)}
    if cuda:
        makers["ours fp16"] = partial(our_step, case, f"{fp32} --amp --amp-dtype fp16")
        makers["reference fp16"] = partial(reference_step, case, amp=True)
    if case.compiled:
        makers["alone compiled"] = partial(our_step, case, f"{alone} --torch-compile")
        makers["ours compiled"] = partial(our_step, case, f"{main} --torch-compile")
    made, memory = {}, {}
    for way, make in makers.items():
        before = torch.cuda.memory_allocated() if cuda else 0
        made[way] = make()
        for _ in range(4 if cuda else 0):  # in the first, cuDNN tries its algorithms
            torch.cuda.reset_peak_memory_stats()
            made[way]()
            memory[way] = torch.cuda.max_memory_allocated() - before
    samples = take_turns(made, case.device, effort, repeats=5 if cuda else 1)  # the host may run ahead
    whole, half = (model.cost(subnet, case.pixels).macs for subnet in (model.subnets[0], model.subnets[-1]))
    macs = {way: whole if way.startswith("alone") else whole + half for way in made}
    about = {"pixels": case.pixels, "processes": processes.world_size()}
    return [Group(part, case.name, case.batch, samples, macs, memory, about)]


def convolutional(model: nn.Module) -> bool:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1  # a transformer has one


def forwards(part: str, case: Case, effort: Effort) -> list[Group]:
    """Ways of running sub-networks: evaluation mode, bf16, no gradients."""
    model = case.build().eval()
    model.to(memory_format=(layout := torch.channels_last if convolutional(model) else torch.contiguous_format))
    to_float = presets.ToFloat(memory_format=layout).to(case.device)
    images, macs = to_float(case.random_batch()[0].to(case.device)), {}
    turns = [model.subnets[0], model.subnets[-1]] * 8

    def in_order(subnets: list) -> Call:
        return lambda: [model(images, subnet) for subnet in subnets]

    # one autocast around all calls keeps the weights that it casts, which in inference_mode it would not
    with torch.no_grad(), torch.autocast(case.device.type, dtype=torch.bfloat16):
        if part == LATENCY:
            ways = one_by_one(model, images, case.compiled)
            macs = {way: model.cost(model.parse(way.split()[0]), case.pixels).macs for way in ways if way != "plain"}
        elif part == SWITCHING:  # super-net and base-net by turns, against the same calls sorted
            ways = {"sorted": in_order(turns[::2] + turns[1::2]), "alternating": in_order(turns)}
        else:
            ways = {"separate runs": in_order(model.subnets), "one walk": partial(model.forward_all, images)}
        samples = take_turns(ways, case.device, effort)
    return [Group(part, case.name, case.batch, samples, macs, about={"pixels": case.pixels})]


def one_by_one(model: nn.Module, images: Tensor, compiled: bool) -> dict[str, Call]:
    """Every sub-network, and torchvision's; the largest and the smallest also compiled and as a CUDA graph."""
    ways = {model.name(subnet): partial(model, images, subnet) for subnet in model.subnets}
    fast = copy.deepcopy(model)
    if compiled:
        fast.compile()
    for subnet in (model.subnets[0], model.subnets[-1]):
        name = model.name(subnet)
        if compiled:
            ways[f"{name} compiled"] = partial(fast, images, subnet)
        if images.is_cuda:
            ways[f"{name} CUDA graph"] = recorded(ways[name])
    return {**ways, "plain": partial(model.extract(), images)}


KINDS = {"train plain": "", "train ta_wide": "--auto-augment ta_wide", "evaluation": ""}  # and flags of the command
DEFAULTS = "--train-crop-size 224 --interpolation bilinear --hflip-prob 0.5"  # of the command, for photographs


def chains(part: str, case: Case, effort: Effort) -> list[Group]:
    """Every chain over the same files, with other random numbers each time. One thread: processor time counts."""
    threads, groups, random = torch.get_num_threads(), [], torch.Generator().manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}.jpg" for number in range(case.batch)]
        for path in paths:  # with structure at every scale, of the size and weight of ImageNet's: 500 x 375, 100 kB
            noise = [torch.randn(1, 3, n, n, generator=random) * 300 / n**0.5 for n in (4, 16, 64, 256)]
            pixels = 128 + sum(F.interpolate(layer, (375, 500), mode="bicubic")[0] for layer in noise)
            write_jpeg(pixels.clamp(0, 255).byte(), path, quality=93)

        def over_all(chain: Chain, seeds: itertools.count) -> None:
            torch.manual_seed(next(seeds))
            for path in paths:
                chain(path)

        for kind in KINDS:
            ways = {"classic": classic(kind), "ours, pil": ours(kind, "pil"), "ours, tensor": ours(kind, "tensor")}
            calls = {way: partial(over_all, chain, itertools.count()) for way, chain in ways.items()}
            groups.append(Group(part, kind, case.batch, take_turns(calls, torch.device("cpu"), effort)))
    torch.set_num_threads(threads)
    return groups


def classic(kind: str) -> Chain:
    """What torchvision's reference scripts do in a worker: PIL and transforms v1, then floats and normalisation."""
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if kind == "evaluation":
        steps = [transforms.Resize(256), transforms.CenterCrop(224)]
    if kind == "train ta_wide":
        steps.append(autoaugment.TrivialAugmentWide(interpolation=transforms.InterpolationMode.BILINEAR))
    steps += [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float)]
    chain = transforms.Compose([*steps, transforms.Normalize(presets.IMAGENET_MEAN, presets.IMAGENET_STD)])
    return lambda path: chain(pil_loader(path))


def ours(kind: str, decode: str) -> Chain:
    args = arguments.parser(methods).parse_args(f"{DEFAULTS} {KINDS[kind]}".split())
    fill_defaults(args, methods.defaults(args))
    transform = presets.eval_transform() if kind == "evaluation" else presets.train_transform(args)
    return lambda path: transform(presets.DECODERS[decode](path))
