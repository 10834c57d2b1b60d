"""What moves the weights: parameter groups, optimizer, learning-rate schedule, and the weights' moving average."""

import argparse
import copy
import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules

log = logging.getLogger(__name__)

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)
# Embeddings of transformers by parameter name, in the order of their groups.
EMBEDDINGS = ("class_token", "pos_embedding", "position_embedding", "relative_position_bias_table")


def group_names(model: nn.Module, args: argparse.Namespace) -> dict[str, str]:
    """Which group each parameter belongs to. A group exists only if its flag gives it a weight decay of its own."""
    groups = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias" and args.bias_weight_decay is not None:
                group = "bias"
            elif name in EMBEDDINGS and args.transformer_embedding_decay is not None:
                group = name
            elif isinstance(module, NORMS) and args.norm_weight_decay is not None:
                group = "norm"
            else:
                group = "other"
            groups[f"{prefix}.{name}" if prefix else name] = group
    return groups


def ordered(groups: dict[str, str]) -> dict[str, list[str]]:
    """Parameter names by group, in the order of the official implementation, so that its optimizer state fits."""
    order = ("other", "norm", "bias", *EMBEDDINGS)
    return {key: names for key in order if (names := [name for name, group in groups.items() if group == key])}


def parameter_groups(model: nn.Module, args: argparse.Namespace) -> list[dict]:
    decay = {"other": args.weight_decay, "norm": args.norm_weight_decay, "bias": args.bias_weight_decay}
    parameters = dict(model.named_parameters())
    return [
        {
            "params": [parameters[name] for name in names],
            "weight_decay": decay.get(key, args.transformer_embedding_decay),
        }
        for key, names in ordered(group_names(model, args)).items()
    ]


def build_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """The optimizer that --opt names, updating all parameters in one fused kernel where it has one."""
    groups = parameter_groups(model, args)
    common = {"lr": args.lr, "weight_decay": args.weight_decay}
    if args.opt == "adamw":
        return torch.optim.AdamW(groups, fused=True, **common)
    if args.opt == "rmsprop":
        return torch.optim.RMSprop(groups, momentum=args.momentum, eps=0.0316, alpha=0.9, foreach=True, **common)
    return torch.optim.SGD(groups, momentum=args.momentum, nesterov=args.opt == "sgd_nesterov", fused=True, **common)


def build_scheduler(optimizer: torch.optim.Optimizer, args: argparse.Namespace) -> schedules.LRScheduler:
    """The schedule that --lr-scheduler names, after a warm-up if there is one. It steps once an epoch."""
    if args.lr_scheduler == "steplr":
        main = schedules.StepLR(optimizer, step_size=args.lr_step_size, gamma=args.lr_gamma)
    elif args.lr_scheduler == "multisteplr":
        main = schedules.MultiStepLR(optimizer, milestones=args.lr_multi_steps, gamma=args.lr_gamma)
    elif args.lr_scheduler == "cosineannealinglr":
        epochs = max(1, args.epochs - args.lr_warmup_epochs)
        main = schedules.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=args.lr_min)
    else:
        main = schedules.ExponentialLR(optimizer, gamma=args.lr_gamma)
    if not args.lr_warmup_epochs:
        return main
    factor, epochs = args.lr_warmup_decay, args.lr_warmup_epochs
    if epochs >= args.epochs:
        log.warning("--lr-warmup-epochs %d: the run of %d epochs ends in its warm-up", epochs, args.epochs)
    if args.lr_warmup_method == "linear":
        warmup = schedules.LinearLR(optimizer, start_factor=factor, total_iters=epochs)
    else:
        warmup = schedules.ConstantLR(optimizer, factor=factor, total_iters=epochs)
    return schedules.SequentialLR(optimizer, [warmup, main], milestones=[epochs])


class MovingAverage(nn.Module):
    """Exponential moving average of a model's parameters and buffers, updated every `every` steps.

    The state dict's layout is that of torch's AveragedModel, which official checkpoints use: `module.*`, `n_averaged`.
    """

    def __init__(self, model: nn.Module, decay: float, every: int) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.register_buffer("n_averaged", torch.tensor(0))
        self.decay = decay
        self.every = every

    @classmethod
    def of(cls, model: nn.Module, args: argparse.Namespace, processes: int) -> "MovingAverage":
        """The decay is adjusted so that it means the same for any batch, number of epochs and steps between updates."""
        batch = processes * args.batch_size * args.grad_accum
        adjusted = (1 - args.model_ema_decay) * batch * args.model_ema_steps / args.epochs
        return cls(model, 1 - min(1.0, adjusted), args.model_ema_steps)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, warming_up: bool) -> None:
        """Average after the epoch's step `step`, if it is one to be averaged; in a warm-up, start again there."""
        if step % self.every:
            return
        mine, theirs = _tensors(self.module), _tensors(model)
        floating = [(m, t) for m, t in zip(mine, theirs, strict=True) if m.is_floating_point()]
        counters = [(m, t) for m, t in zip(mine, theirs, strict=True) if not m.is_floating_point()]
        if self.n_averaged == 0:
            torch._foreach_copy_([m for m, _ in floating], [t for _, t in floating])
        else:
            torch._foreach_lerp_([m for m, _ in floating], [t for _, t in floating], 1 - self.decay)
        if counters:
            torch._foreach_copy_([m for m, _ in counters], [t for _, t in counters])
        self.n_averaged.fill_(0 if warming_up else int(self.n_averaged) + 1)

    def _apply(self, fn, recurse: bool = True):
        """The counter stays on the CPU, where asking it costs no wait for the device."""
        self.module._apply(fn, recurse)
        return self


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element is infinite or not a number; waits for the device once."""
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors if tensor.is_floating_point()])
    return bool(torch.stack(norms).isfinite().all())
