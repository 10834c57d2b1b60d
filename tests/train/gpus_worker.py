"""Started in two processes by test_gpu.py: a step on half a batch in each against one on the whole, in float64."""

import copy
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tests.tiny import batch, tiny
from utils import processes
from utils.train.losses import Distillation, mean_over_space
from utils.train.passes import LABELS, Pass
from utils.train.run import with_sync_bn
from utils.train.step import TrainingStep, share_gradients


def step(network: nn.Module, model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """`network`: the model, wrapped for several processes or not."""
    passes = [
        Pass("super", model.super_net, ((LABELS, 0.5),)),
        Pass("base", model.base_net, ((0, 0.3),)),
        Pass("between", (True, *model.super_net[1:]), ((LABELS, 0.1), (0, 0.1))),
    ]
    distance = Distillation(2.0, topk=3, features=mean_over_space)
    TrainingStep(network, nn.CrossEntropyLoss(), distance, nullcontext)(passes, images, labels, Tensor.backward)


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference, measured by each tensor's own largest value."""
    assert ours.keys() == theirs.keys()
    return max(
        (((ours[name] - t).abs().max() / (t.abs().max() + 1e-6)).item() for name, t in theirs.items()), default=0
    )


def compare(name: str, device: torch.device) -> dict[str, float | bool]:
    model = tiny(name).double().to(device).train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, StochasticDepth)):
            module.p = 0.0
    alone = copy.deepcopy(model)
    images, labels = batch(16).double().to(device), torch.arange(16, device=device) % 7
    step(alone, alone, images, labels)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model = with_sync_bn(model, device)
    mine = slice(8 * processes.rank(), 8 * processes.rank() + 8)
    step(share_gradients(model), model, images[mine], labels[mine])
    ours, theirs = ({n: p.grad for n, p in net.named_parameters()} for net in (model, alone))
    statistics = [{n: b for n, b in net.named_buffers() if b.is_floating_point()} for net in (model, alone)]
    return {
        "gradients": apart(ours, {n: torch.zeros_like(ours[n]) if g is None else g for n, g in theirs.items()}),
        "statistics": apart(*statistics),
        "same everywhere": all(torch.equal(*processes.gather(gradient)) for gradient in ours.values()),
    }


def main(path: str, device: str, *names: str) -> int:
    processes.connect()
    here = processes.join(torch.device(device))
    results = {name: compare(name, here) for name in names or ("resnet18", "mobilenet_v2", "vit_b_16", "swin_t")}
    if processes.is_main():
        Path(path).write_text(json.dumps(results))
    processes.leave()
    return 0


if __name__ == "__main__":
    processes.run(lambda: main(*sys.argv[1:]))
