"""Run by torchrun from test_reduction.py: takes steps on different data in each process and tells what was reduced."""

import contextlib
import copy
import json
import sys

import torch
import torch.distributed as dist
from torch import nn

from tests.tiny import tiny
from utils import processes as distributed
from utils.reduction import GradientReducer
from utils.train.step import SelfDistillation, TrainingStep, adn_passes, individual_passes


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run_step(model: nn.Module, passes: list, micro_batches: list, reducer: GradientReducer | None = None) -> None:
    step = TrainingStep(model, passes, nn.CrossEntropyLoss(), SelfDistillation(topk=3), contextlib.nullcontext)
    for number, (images, labels) in enumerate(micro_batches):
        if reducer:
            reducer.prepare(last=number == len(micro_batches) - 1)
        step(images, labels, lambda loss: (loss / len(micro_batches)).backward())
    if reducer:
        reducer.finish()


def compare(name: str, individual: bool, accumulate: int) -> dict:
    """Three steps: the reducer learns in the first and overlaps in the others."""
    torch.manual_seed(distributed.rank())
    model = tiny(name, num_classes=7).train()
    for parameter in model.parameters():
        parameter.data.add_(0.01 * distributed.rank())  # to be mended by the reducer, which starts all from one
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    passes = individual_passes(model.base_net) if individual else adn_passes(model.super_net, model.base_net, 0.5)
    reducer = GradientReducer(model, bucket_bytes=100_000)
    sent, equal, overlapped = [], True, []
    for number in range(3):
        generator = torch.Generator().manual_seed(100 * number + distributed.rank())
        batches = [
            (torch.randn(4, 3, 32, 32, generator=generator), torch.randint(7, (4,), generator=generator))
            for _ in range(accumulate)
        ]
        alone = copy.deepcopy(model)
        alone.zero_grad(set_to_none=True)
        run_step(alone, passes, batches)
        averages = {key: distributed.gather(grad).mean(0) for key, grad in gradients(alone).items()}
        used = sum(grad.nbytes for grad in averages.values())
        model.zero_grad(set_to_none=False)
        with counting() as calls:
            run_step(model, passes, batches, reducer)
        sent.append(sum(calls))
        overlapped.append(reducer.early)
        reduced = gradients(model)
        equal = equal and all(torch.equal(reduced[key], averages[key]) for key in averages)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
    same = all(torch.equal(*distributed.gather(p.detach())) for p in model.parameters())
    return {
        "name": name,
        "bytes": sent,
        "used": used,
        "parameters": sum(p.nbytes for p in model.parameters()),
        "buckets": len(reducer.buckets),
        "equal": equal,
        "same": same,
        "early": overlapped,
        "individual": individual,
    }


@contextlib.contextmanager
def counting():
    """The bytes of each all-reduce inside."""
    real, calls = dist.all_reduce, []

    def counted(tensor, *args, **kwargs):
        calls.append(tensor.nbytes)
        return real(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        yield calls
    finally:
        dist.all_reduce = real


def main() -> None:
    distributed.connect()
    distributed.join(torch.device("cpu"))
    results = [compare(name, False, 1) for name in ("resnet18", "mobilenet_v2", "vit_b_16", "swin_t")]
    results += [compare("resnet18", True, 1), compare("mobilenet_v2", False, 3)]
    if distributed.is_main():
        with open(sys.argv[1], "w") as file:
            json.dump(results, file)
    distributed.leave()


if __name__ == "__main__":
    main()
