"""Run in two processes from test_gradients.py: takes steps on different data in each and tells what was reduced."""

import contextlib
import copy
import json
import sys
from argparse import Namespace
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn

import models
from methods.drawn import Drawn
from methods.slimmable import Sandwich, Slimmable
from tests.tiny import TINY, tiny
from utils import processes
from utils.data.loading import Batch
from utils.train import engine
from utils.train.log import Meters
from utils.train.losses import Distillation
from utils.train.passes import LABELS, Pass
from utils.train.step import TrainingStep, share_gradients

BF16 = partial(torch.autocast, "cpu", torch.bfloat16)


def adn(model, _) -> list[Pass]:
    return [Pass("super", model.super_net, ((LABELS, 0.5),)), Pass("base", model.base_net, ((0, 0.5),))]


def base_first(model, _) -> list[Pass]:
    """What only the base-net has (its norms) gets no gradient in the pass that reduces."""
    return [Pass("base", model.base_net, ((LABELS, 0.5),)), Pass("super", model.super_net, ((LABELS, 0.5),))]


def drawn(count: int, model, step: int) -> list[Pass]:
    """Another list of passes in every step."""
    generator = torch.Generator().manual_seed(step)
    numbers = torch.randint(len(model.subnets), (count - 1,), generator=generator).tolist()
    others = [Pass(f"drawn {place}", model.subnets[number], ((0, 0.3),)) for place, number in enumerate(numbers)]
    return [Pass("super", model.super_net, ((LABELS, 0.5),)), *others]


def of_method(method, model, step: int) -> list[Pass]:
    return method(Namespace(seed=0, sandwich=4, in_place_distillation=True), model).passes(0, step)


CASES = {  # name → network, passes, batches a step, settings
    "resnet18": ("resnet18", adn, 1, ""),
    "vit_b_16": ("vit_b_16", adn, 1, ""),
    "base-net first": ("resnet20", base_first, 1, ""),
    "three passes, drawn": ("resnet20", partial(drawn, 3), 1, ""),
    "four passes, drawn": ("swin_t", partial(drawn, 4), 1, ""),
    "accumulated": ("mobilenet_v2", adn, 3, ""),
    "bf16, channels last": ("resnet20", adn, 1, "bf16 channels_last"),
    "fp16 scaling": ("resnet20", adn, 2, "scaled"),
    "compiled": ("resnet20", partial(drawn, 2), 1, "compiled"),
    "fresh gradients": ("resnet20", partial(drawn, 3), 1, "none"),
    "all widths": ("s_mobilenet_v2_small", partial(of_method, Slimmable), 1, ""),
    "sandwich of widths": ("us_mobilenet_v2_small", partial(of_method, Sandwich), 1, ""),
}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run_step(model: nn.Module, passes: list, batches: list, settings: str) -> None:
    autocast = BF16 if "bf16" in settings else contextlib.nullcontext
    step = TrainingStep(model, nn.CrossEntropyLoss(), Distillation(topk=3), autocast)
    scale = 1024 if "scaled" in settings else 1
    for number, (images, labels) in enumerate(batches):
        step(
            passes,
            images,
            labels,
            lambda loss: (scale * loss / len(batches)).backward(),
            reduce=number == len(batches) - 1,
        )


def compare(case: str) -> dict:
    name, passes_of, accumulate, settings = CASES[case]
    torch.manual_seed(0)
    model = (tiny if name in TINY else models.build)(name, num_classes=7).train()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    for parameter in model.parameters():
        parameter.data.add_(0.01 * processes.rank())  # to be mended: all start from the first process's
    layout = torch.channels_last if "channels_last" in settings else torch.contiguous_format
    model = model.to(memory_format=layout)
    if "compiled" in settings:
        model.compile(backend="eager")
    shared = share_gradients(model)
    equal = []
    for number in range(2):
        generator = torch.Generator().manual_seed(100 * number + processes.rank())
        batches = [
            (torch.randn(4, 3, 32, 32, generator=generator), torch.randint(7, (4,), generator=generator))
            for _ in range(accumulate)
        ]
        alone = copy.deepcopy(model)
        alone.zero_grad(set_to_none=True)
        passes = passes_of(model, number)
        run_step(alone, passes, batches, settings)
        expected = {key: processes.gather(grad).mean(0) for key, grad in gradients(alone).items()}
        model.zero_grad(set_to_none="none" in settings)
        run_step(shared, passes, batches, settings)
        reduced = gradients(model)
        equal.append(all(torch.equal(reduced[key], grad) for key, grad in expected.items()))
        equal.append(not any(grad.any() for key, grad in reduced.items() if key not in expected))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
    same = all(torch.equal(*processes.gather(p.detach())) for p in model.parameters())
    return {"equal": equal, "same": same}


def sent(frozen: bool) -> dict:
    """Bytes that a step of two passes sends, each bucket counted as it leaves."""
    torch.manual_seed(0)
    model = tiny("resnet18", num_classes=7).train()
    if frozen:
        model.requires_grad_(False)
        model.view(model.base_net).requires_grad_(True)
    shared, sizes = share_gradients(model), []

    def hook(_, bucket):
        sizes.append(bucket.buffer().nbytes)
        work = dist.all_reduce(bucket.buffer().div_(processes.world_size()), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    shared.register_comm_hook(None, hook)
    passes = [Pass("base", model.base_net, ((LABELS, 1.0),))] if frozen else adn(model, 0)
    run_step(shared, passes, [(torch.randn(4, 3, 32, 32), torch.arange(4))], "")
    used = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return {"bytes": sum(sizes), "buckets": len(sizes), "used": used}


def moved() -> float:
    """How far steps that leave parameters out lead the processes from where one process with all images comes to."""
    args = Namespace(seed=0, on_corrupt="error", clip_grad_norm=None, draw=[0.3, 0.3], ema_teacher=False)
    args.lr_warmup_steps = 0
    args.subpath_temp, args.subpath_topk, args.subpath_alpha = 1.0, 0, 0.5
    model = tiny("vit_b_16").train()
    alone = copy.deepcopy(model)
    sgd, sgd_alone = (torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.1) for m in (model, alone))
    progress, scaler = SimpleNamespace(epoch=0, step=0, corrupt=[]), torch.amp.GradScaler("cpu", enabled=False)
    state = SimpleNamespace(model=model, optimizer=sgd, scaler=scaler, ema=None, progress=progress)
    step = TrainingStep(share_gradients(model), nn.CrossEntropyLoss(), None, contextlib.nullcontext)
    method, meters = Drawn(args, model), Meters(1, torch.device("cpu"))
    run = SimpleNamespace(args=args, state=state, method=method, step=step, mix=lambda *batch: batch[:2])
    for progress.step in range(6):
        generator = torch.Generator().manual_seed(progress.step)
        images = torch.randn(processes.world_size(), 4, 3, 32, 32, generator=generator)
        labels = torch.randint(7, images.shape[:2], generator=generator)
        engine.take_step(run, [Batch(images[processes.rank()], labels[processes.rank()], [])], 1, meters)
        sgd_alone.zero_grad()
        (this,) = method.passes(0, progress.step)
        nn.CrossEntropyLoss()(alone(images.flatten(0, 1), this.subnet), labels.flatten()).backward()
        sgd_alone.step()
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


def main() -> None:
    processes.connect(sys.argv[-1])
    processes.join(torch.device("cpu"))
    results = {case: compare(case) for case in CASES}
    results["sent"], results["sent frozen"] = sent(False), sent(True)
    results["moved"] = moved()
    if processes.is_main():
        with open(sys.argv[1], "w") as file:
            json.dump(results, file)
    processes.leave()


if __name__ == "__main__":
    main()
