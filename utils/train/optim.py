"""What moves the weights: parameter groups, optimizer, learning-rate schedule, and the weights' moving average.

The networks' parameters are numbered as in the official code, so that its optimizer state fits.
"""

import argparse
import contextlib
import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules

log = logging.getLogger(__name__)

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first: of batch and instance
# Embeddings of transformers by parameter name, in the order of their groups.
EMBEDDINGS = ("class_token", "pos_embedding", "position_embedding", "relative_position_bias_table")
EMBEDDINGS += ("cls_token", "reg_token", "pos_embed")  # as timm calls them


def group_names(model: nn.Module, args: argparse.Namespace) -> dict[str, str]:
    """Which group each parameter belongs to. A group exists only if its flag gives it a weight decay of its own.

    Frozen parameters are among them: without a gradient nothing moves them, and a parameter's number in the optimizer's
    state does not depend on what else is trained.
    """
    groups = {}
    for name, _ in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        depthwise = isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels
        groups[name] = "other"
        if own_name == "bias" and args.bias_weight_decay is not None:
            groups[name] = "bias"
        elif own_name in EMBEDDINGS and args.transformer_embedding_decay is not None:
            groups[name] = own_name
        elif isinstance(module, NORMS) and args.norm_weight_decay is not None:
            groups[name] = "norm"
        elif depthwise and args.depthwise_weight_decay is not None:
            groups[name] = "depthwise"
    return groups


def names_by_group(group_of: Mapping[str, str]) -> dict[str, list[str]]:
    """The groups with their parameters' names, in the order in which the official code numbers them."""
    order = ("other", "norm", "bias", "depthwise", *EMBEDDINGS)
    return {group: names for group in order if (names := [name for name in group_of if group_of[name] == group])}


def build_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """The optimizer that --opt names, updating all parameters in one fused kernel where it has one."""
    decay = {"other": args.weight_decay, "norm": args.norm_weight_decay, "bias": args.bias_weight_decay}
    decay["depthwise"] = args.depthwise_weight_decay
    parameters = dict(model.named_parameters())
    groups = []
    for group, names in names_by_group(group_names(model, args)).items():
        own_decay = decay.get(group, args.transformer_embedding_decay)
        groups.append({"params": [parameters[name] for name in names], "weight_decay": own_decay})
    common = {"lr": args.lr, "weight_decay": args.weight_decay}
    if args.opt == "adamw":
        optimizer = torch.optim.AdamW(groups, fused=True, **common)
    elif args.opt == "rmsprop":
        optimizer = torch.optim.RMSprop(groups, momentum=args.momentum, eps=0.0316, alpha=0.9, foreach=True, **common)
    else:
        nesterov = args.opt == "sgd_nesterov"
        optimizer = torch.optim.SGD(groups, momentum=args.momentum, nesterov=nesterov, fused=True, **common)
    optimizer.register_load_state_dict_post_hook(fit_for_fused_kernels)
    fit_for_fused_kernels(optimizer)
    return optimizer


def fit_for_fused_kernels(optimizer: torch.optim.Optimizer) -> None:
    """Bring an optimizer's state into the form that torch's fused kernels take for granted.

    They walk a parameter and its state side by side as flat memory, so both need one layout; `load_state_dict` keeps
    that of the checkpoint, which may have been written with or without --channels-last.

    And SGD makes its momentum buffers in the first step without filling them. If fp16 gradients overflow there, the
    kernel leaves that step out, and the next one takes for momentum whatever the memory held. So they are made here, of
    zeros, which gives the first step the same bits. AdamW and RMSprop make theirs of zeros by themselves.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                belongs = isinstance(value, Tensor) and value.shape == parameter.shape
                if belongs and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            has_momentum = isinstance(optimizer, torch.optim.SGD) and group["momentum"] != 0
            if has_momentum and parameter.requires_grad and state.get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def build_scheduler(
    optimizer: torch.optim.Optimizer, args: argparse.Namespace, epoch: int = 0
) -> schedules.LRScheduler:
    """The schedule of a whole run, moved to the beginning of `epoch`. It steps once an epoch."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = args.lr
    scheduler = _schedule(optimizer, args)
    with warnings.catch_warnings():  # torch asks for a step of the optimizer before each of the schedule's
        warnings.filterwarnings("ignore", ".*lr_scheduler.step", UserWarning)
        for _ in range(epoch):
            scheduler.step()
    return scheduler


def _schedule(optimizer: torch.optim.Optimizer, args: argparse.Namespace) -> schedules.LRScheduler:
    """What --lr-scheduler names, after a warm-up if there is one."""
    if args.lr_scheduler == "steplr":
        main = schedules.StepLR(optimizer, step_size=args.lr_step_size, gamma=args.lr_gamma)
    elif args.lr_scheduler == "multisteplr":
        main = schedules.MultiStepLR(optimizer, milestones=args.lr_multi_steps, gamma=args.lr_gamma)
    elif args.lr_scheduler == "cosineannealinglr":
        epochs = max(1, args.epochs - args.lr_warmup_epochs)
        main = schedules.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=args.lr_min)
    elif args.lr_scheduler == "linearlr":
        main = schedules.LinearLR(optimizer, 1.0, 0.0, total_iters=max(1, args.epochs - args.lr_warmup_epochs))
    else:
        main = schedules.ExponentialLR(optimizer, gamma=args.lr_gamma)
    epochs = args.lr_warmup_epochs
    if epochs == 0:
        return main
    if epochs >= args.epochs:
        log.warning("--lr-warmup-epochs %d: the run of %d epochs ends in its warm-up", epochs, args.epochs)
    kind = schedules.LinearLR if args.lr_warmup_method == "linear" else schedules.ConstantLR
    warmup = kind(optimizer, args.lr_warmup_decay, total_iters=epochs)
    return schedules.SequentialLR(optimizer, [warmup, main], milestones=[epochs])


@contextlib.contextmanager
def warming_up(optimizer: torch.optim.Optimizer, steps: int, epoch: int, step: int) -> Iterator[None]:
    """Inside, the learning rate of this step: in the first `steps` of a run it rises linearly to the schedule's."""
    share = 1.0 if epoch else min(1.0, (step + 1) / (steps + 1))
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * share
    yield
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class MovingAverage(nn.Module):
    """Exponential moving average of a model's parameters and buffers, updated every `every` steps.

    The state dict's layout is that of torch's AveragedModel, which official checkpoints use: `module.*`, `n_averaged`.
    Unlike there, an update does not wait for the device (the counter stays on the CPU) and counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float, every: int) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.register_buffer("n_averaged", torch.tensor(0, device="cpu"))
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
        count = int(self.n_averaged)
        averaged = [*self.module.parameters(), *self.module.buffers()]
        to_average, to_copy = [], []
        for mine, theirs in zip(averaged, [*model.parameters(), *model.buffers()], strict=True):
            (to_average if count and mine.is_floating_point() else to_copy).append((mine, theirs))
        if to_average:
            torch._foreach_lerp_(*zip(*to_average, strict=True), 1 - self.decay)
        if to_copy:
            torch._foreach_copy_(*zip(*to_copy, strict=True))
        self.n_averaged.fill_(0 if warming_up else count + 1)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element is infinite or not a number; waits for the device once."""
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors if tensor.is_floating_point()])
    return bool(torch.stack(norms).isfinite().all())
