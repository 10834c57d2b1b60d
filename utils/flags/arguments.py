"""Every flag of the command, in groups, with its default. Imports no torch, so that `--help` is answered at once.

Names and defaults are those of torchvision's reference scripts and of the official implementation, so that recipes
run word for word. A flag that cannot have an effect is an error: `_RULES` says which flag needs which.
"""

import argparse
from collections.abc import Callable

from utils.flags.data import data_flags
from utils.flags.evaluation import evaluation_flags
from utils.flags.parsing import COUNT, FRACTION, NATURAL, NONNEGATIVE, POSITIVE, Formatter, Parser, one_of

OPTIMIZERS = ("sgd", "sgd_nesterov", "rmsprop", "adamw")
SCHEDULERS = ("steplr", "multisteplr", "cosineannealinglr", "exponentiallr")
WARMUPS = ("linear", "constant")


def parser() -> Parser:
    """The command's parser."""
    parser = Parser(
        prog="train_adn.py",
        description="Train and test adaptive-depth networks: one set of weights, 2^N depths.",
        formatter_class=Formatter,
        check=check,
        allow_abbrev=False,
    )
    _model_flags(parser.add_argument_group("model"))
    data_flags(parser)
    _distillation_flags(parser.add_argument_group("self-distillation"))
    _optimizer_flags(parser.add_argument_group("optimization"))
    _schedule_flags(parser.add_argument_group("learning rate"))
    _precision_flags(parser.add_argument_group("machine and precision"))
    _run_flags(parser.add_argument_group("run, checkpoints, log"))
    evaluation_flags(parser)
    return parser


def _model_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", default="resnet18", metavar="NAME", help="the network, by its name in models/")
    group.add_argument(
        "--stem",
        choices=("imagenet", "small"),
        help="networks of convolutions: `small` keeps the resolution of images of 28 or 32 pixels (default: imagenet)",
    )
    group.add_argument(
        "--patch-size", type=COUNT, metavar="N", help="transformers: pixels per patch (default: the model's)"
    )
    group.add_argument(
        "--window-size",
        type=COUNT,
        metavar="N",
        help="transformers of windows: patches per window and side (default: the model's)",
    )
    group.add_argument(
        "--no-switchable-norms",
        action="store_true",
        help="ablation: super-net and base-net share all norms (costs about 1 point of accuracy)",
    )
    group.add_argument(
        "--init-from",
        metavar="FILE|ENUM",
        help="start from an ordinary network: a torchvision weights file, or an enum such as IMAGENET1K_V2",
    )


def _distillation_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--subpath-alpha",
        type=FRACTION,
        default=0.5,
        help="weight of the super-net's loss; the base-net's is 1 - alpha",
    )
    group.add_argument("--subpath-temp", type=POSITIVE, default=1.0, help="temperature of the distillation")
    group.add_argument(
        "--subpath-topk",
        type=NATURAL,
        default=500,
        metavar="K",
        help="distil over the super-net's K likeliest classes (of at most all); 0 = all, as in the paper",
    )
    group.add_argument("--fpn", action="store_true", help="distil stage features too (a few %% of time, +0.2 points)")
    group.add_argument("--no-distillation", action="store_true", help="ablation: both networks learn from the labels")
    group.add_argument(
        "--method",
        choices=("adn", "individual"),
        default="adn",
        help="individual: train the one network of --skip-cfg alone, on the labels",
    )


def _optimizer_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-b", "--batch-size", type=COUNT, default=32, metavar="N", help="images per process and forward pass"
    )
    group.add_argument(
        "--grad-accum",
        type=COUNT,
        default=1,
        metavar="N",
        help="batches per optimizer step: the batch of a step is N x batch-size x processes",
    )
    group.add_argument("--epochs", type=COUNT, default=90, metavar="N", help="epochs in all")
    group.add_argument(
        "--opt", type=one_of(OPTIMIZERS), default="sgd", metavar="NAME", help=f"one of {', '.join(OPTIMIZERS)}"
    )
    group.add_argument("--lr", type=NONNEGATIVE, default=0.1, help="initial learning rate")
    group.add_argument("--momentum", type=NONNEGATIVE, default=0.9, metavar="M", help="momentum of sgd and rmsprop")
    group.add_argument(
        "--wd", "--weight-decay", type=NONNEGATIVE, default=1e-4, metavar="W", dest="weight_decay", help="weight decay"
    )
    group.add_argument(
        "--norm-weight-decay", type=NONNEGATIVE, metavar="W", help="weight decay of norms (default: that of --wd)"
    )
    group.add_argument(
        "--bias-weight-decay", type=NONNEGATIVE, metavar="W", help="weight decay of biases (default: that of --wd)"
    )
    group.add_argument(
        "--transformer-embedding-decay",
        type=NONNEGATIVE,
        metavar="W",
        help="weight decay of class token, position embedding and position bias tables (default: that of --wd)",
    )
    group.add_argument("--label-smoothing", type=FRACTION, default=0.0, help="label smoothing")
    group.add_argument(
        "--clip-grad-norm", type=POSITIVE, metavar="X", help="largest norm of the gradient (default: no limit)"
    )
    group.add_argument("--model-ema", action="store_true", help="keep and evaluate a moving average of the weights")
    group.add_argument(
        "--model-ema-steps", type=COUNT, default=32, metavar="N", help="steps from one average to the next"
    )
    group.add_argument(
        "--model-ema-decay", type=FRACTION, default=0.99998, help="decay, before it is adjusted to steps and batch"
    )


def _schedule_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lr-scheduler",
        type=one_of(SCHEDULERS),
        default="steplr",
        metavar="NAME",
        help=f"one of {', '.join(SCHEDULERS)}",
    )
    group.add_argument(
        "--lr-step-size", type=COUNT, default=30, metavar="N", help="steplr: epochs from one drop to the next"
    )
    group.add_argument(
        "--lr-multi-steps",
        type=COUNT,
        nargs="+",
        default=[60, 100, 140],
        metavar="N",
        help="multisteplr: epochs of the drops",
    )
    group.add_argument(
        "--lr-gamma", type=POSITIVE, default=0.1, help="factor of a drop, or of each epoch with exponentiallr"
    )
    group.add_argument("--lr-min", type=NONNEGATIVE, default=0.0, help="cosineannealinglr: the last learning rate")
    group.add_argument("--lr-warmup-epochs", type=NATURAL, default=0, metavar="N", help="epochs of warm-up")
    group.add_argument(
        "--lr-warmup-method", type=one_of(WARMUPS), default="constant", metavar="NAME", help="constant or linear"
    )
    group.add_argument("--lr-warmup-decay", type=FRACTION, default=0.01, help="factor at the start of the warm-up")


def _precision_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="auto", help="cuda, cpu, or auto: CUDA if there is one")
    group.add_argument("--amp", action="store_true", help="mixed precision: about twice as fast on a GPU")
    group.add_argument(
        "--amp-dtype",
        choices=("auto", "bf16", "fp16"),
        default="auto",
        help="auto: bf16 where the hardware has it, else fp16 with loss scaling",
    )
    group.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        help="memory layout of convolutions; equal up to rounding (default: on for convolutional networks)",
    )
    group.add_argument(
        "--torch-compile", action="store_true", help="compile the network: faster steps, minutes of start-up"
    )
    group.add_argument("--sync-bn", action="store_true", help="batch norm over all processes (slower steps)")
    group.add_argument(
        "--deterministic",
        "--use-deterministic-algorithms",
        action="store_true",
        help="the same result to the last bit in every run; slower on a GPU, always so on a CPU",
    )
    group.add_argument(
        "--world-size", type=COUNT, default=1, metavar="N", help="checked against the launcher's number of processes"
    )
    group.add_argument("--dist-url", default="env://", metavar="URL", help="where the processes of a SLURM step meet")


def _run_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output-dir", default=".", metavar="DIR", help="where checkpoints and logs go")
    group.add_argument(
        "--resume",
        default="",
        metavar="FILE|auto",
        help="continue a run; auto: the newest good checkpoint of --output-dir, if any",
    )
    group.add_argument(
        "--start-epoch", type=NATURAL, default=0, metavar="N", help="first epoch; --resume sets it by itself"
    )
    group.add_argument(
        "--checkpoint-steps", type=COUNT, metavar="N", help="save every N steps too (default: after every epoch)"
    )
    group.add_argument("--print-freq", type=COUNT, default=10, metavar="N", help="steps from one log line to the next")
    group.add_argument(
        "--tensorboard", action="store_true", help="write TensorBoard events too (pip install tensorboard)"
    )
    group.add_argument("--seed", type=NATURAL, default=0, help="of weights, order and augmentation")


def check(args: argparse.Namespace, defaults: dict[str, object]) -> str | None:
    """The first thing in `args` that cannot be, in one line."""
    for dest, holds, needs in _RULES:
        if getattr(args, dest) != defaults[dest] and not holds(args):
            return f"{_flag(dest)} has no effect without {needs}"
    if args.start_epoch and args.resume:
        return "--start-epoch and --resume contradict each other: a checkpoint knows its epoch"
    if args.opt == "sgd_nesterov" and not args.momentum:
        return "--opt sgd_nesterov needs --momentum above 0"
    starts = [flag for flag in ("--init-from", "--weights") if getattr(args, flag[2:].replace("-", "_"))]
    if len(starts) == 2:
        return "--init-from and --weights contradict each other: choose one to start from"
    return None


def _flag(dest: str) -> str:
    return {"weight_decay": "--wd"}.get(dest, "--" + dest.replace("_", "-"))


_Rule = tuple[str, Callable[[argparse.Namespace], bool], str]


def _distils(args: argparse.Namespace) -> bool:
    return args.method == "adn" and not args.no_distillation


_BUDGETS = ("budget_gmacs", "budget_latency", "budget_params")
_RULES: tuple[_Rule, ...] = (
    ("fpn", _distils, "self-distillation (--method adn and no --no-distillation)"),
    ("subpath_temp", _distils, "self-distillation (--method adn and no --no-distillation)"),
    ("subpath_topk", _distils, "self-distillation (--method adn and no --no-distillation)"),
    ("subpath_alpha", lambda a: a.method == "adn", "--method adn"),
    ("no_distillation", lambda a: a.method == "adn", "--method adn"),
    ("momentum", lambda a: a.opt != "adamw", "--opt sgd, sgd_nesterov or rmsprop"),
    ("amp_dtype", lambda a: a.amp, "--amp"),
    ("model_ema_steps", lambda a: a.model_ema, "--model-ema"),
    ("model_ema_decay", lambda a: a.model_ema, "--model-ema"),
    ("lr_step_size", lambda a: a.lr_scheduler == "steplr", "--lr-scheduler steplr"),
    ("lr_multi_steps", lambda a: a.lr_scheduler == "multisteplr", "--lr-scheduler multisteplr"),
    (
        "lr_gamma",
        lambda a: a.lr_scheduler != "cosineannealinglr",
        "a scheduler that drops (steplr, multisteplr, exponentiallr)",
    ),
    ("lr_min", lambda a: a.lr_scheduler == "cosineannealinglr", "--lr-scheduler cosineannealinglr"),
    ("lr_warmup_method", lambda a: a.lr_warmup_epochs, "--lr-warmup-epochs"),
    ("lr_warmup_decay", lambda a: a.lr_warmup_epochs, "--lr-warmup-epochs"),
    ("skip_cfg", lambda a: a.test_only or a.predict or a.method == "individual", "--test-only or --method individual"),
    *((name, lambda a: a.test_only or a.from_table, "--test-only or --from-table") for name in _BUDGETS),
    ("latency_batch", lambda a: a.test_only, "--test-only"),
    ("no_picture", lambda a: a.test_only, "--test-only"),
    ("weights_url", lambda a: a.weights, "--weights NAME of a released network"),
    ("weights_dir", lambda a: a.weights, "--weights NAME of a released network"),
    ("ra_reps", lambda a: a.ra_sampler, "--ra-sampler"),
    ("ra_magnitude", lambda a: a.auto_augment == "ra", "--auto-augment ra"),
    ("augmix_severity", lambda a: a.auto_augment == "augmix", "--auto-augment augmix"),
)
