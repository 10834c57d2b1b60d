"""Every flag of the command, in groups, with its default. Imports no torch, so that `--help` is answered at once.

Names and defaults are those of torchvision's reference scripts and of the official implementation, so that recipes
run word for word. A flag that cannot have an effect is an error: `check` says which flag needs which.
"""

import argparse
from functools import partial
from types import ModuleType

from utils.flags.channels import Flat, channel_lists
from utils.flags.data import data_flags
from utils.flags.evaluation import evaluation_flags
from utils.flags.parsing import COUNT, FRACTION, NATURAL, NONNEGATIVE, POSITIVE, Needs, Parser, bounded, one_of

OPTIMIZERS = ("sgd", "sgd_nesterov", "rmsprop", "adamw")
SCHEDULERS = ("steplr", "multisteplr", "cosineannealinglr", "exponentiallr", "linearlr")
WARMUPS = ("linear", "constant")


def parser(methods: ModuleType) -> Parser:
    """The command's parser. `methods` are those of training, by name in METHODS, with their flags."""
    description = "Train and test adaptive-depth networks: one set of weights, 2^N depths."
    parser = Parser("train_adn.py", description, partial(check, methods))
    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="NAME", help="the network, by its name; README.md lists them all (default: resnet18)")
    small = "`small` keeps the resolution of images of 28 or 32 pixels"
    add("--stem", choices=("imagenet", "small"), help=f"networks of convolutions: {small} (default: imagenet)")
    add("--patch-size", type=COUNT, help="transformers: pixels per patch (default: the model's)")
    window = "transformers of windows: patches per window and side (default: the model's)"
    add("--window-size", type=COUNT, help=window)
    lists = "autoslim_…: files of `python -m tools.slim`, or lists such as [8,16,…] (default: the authors')"
    add("--channels", type=channel_lists, nargs="+", action=Flat, metavar="FILE", help=lists)
    shared = "ablation: super-net and base-net share all norms (costs about 1 point of accuracy)"
    add("--no-switchable-norms", action="store_true", default=None, help=shared)
    plain = "start from an ordinary network or one of ours: a weights file, checkpoint, or name such as IMAGENET1K_V2"
    add("--init-from", metavar="FILE|NAME", help=plain)
    data_flags(parser)
    group = parser.add_argument_group("method and self-distillation")
    alone = (
        "individual: the one network of --skip-cfg, on the labels; drawn: one drawn sub-network a step, on them; "
        "slimmable: every sub-network in every step; sandwich: the largest, the smallest and drawn ones; "
        "san: every resolution in every step"
    )
    group.add_argument("--method", choices=tuple(methods.METHODS), default="adn", help=alone)
    methods.add_flags(group)
    optimization_flags(parser)
    run_flags(parser)
    evaluation_flags(parser)
    return parser


def optimization_flags(parser: Parser) -> None:
    add = parser.add_argument_group("optimization").add_argument
    add("-b", "--batch-size", type=COUNT, default=32, help="images per process and forward pass")
    batches = "batches per optimizer step: the batch of a step is N x batch-size x processes"
    add("--grad-accum", type=COUNT, default=1, help=batches)
    add("--epochs", type=COUNT, default=90, help="epochs in all")
    add("--opt", type=one_of(OPTIMIZERS), default="sgd", metavar="NAME", help=f"one of {', '.join(OPTIMIZERS)}")
    add("--lr", type=NONNEGATIVE, default=0.1, help="initial learning rate")
    add("--momentum", type=NONNEGATIVE, default=0.9, metavar="M", help="momentum of sgd and rmsprop")
    wd = {"type": NONNEGATIVE, "metavar": "W"}
    add("--wd", "--weight-decay", dest="weight_decay", default=1e-4, help="weight decay", **wd)
    add("--norm-weight-decay", help="weight decay of norms (default: that of --wd)", **wd)
    add("--bias-weight-decay", help="weight decay of biases (default: that of --wd)", **wd)
    depthwise = "weight decay of depthwise convolutions (default: that of --wd)"
    add("--depthwise-weight-decay", help=depthwise, **wd)
    tables = "class token, position embedding and position bias tables"
    add("--transformer-embedding-decay", help=f"weight decay of {tables} (default: that of --wd)", **wd)
    add("--label-smoothing", type=FRACTION, default=0.0, help="label smoothing")
    add("--clip-grad-norm", type=POSITIVE, metavar="X", help="largest norm of the gradient (default: no limit)")
    add("--model-ema", action="store_true", help="keep and evaluate a moving average of the weights")
    add("--model-ema-steps", type=COUNT, default=32, help="steps from one average to the next")
    add("--model-ema-decay", type=FRACTION, default=0.99998, help="decay, before it is adjusted to steps and batch")

    add = parser.add_argument_group("learning rate").add_argument
    kinds = f"one of {', '.join(SCHEDULERS)}"
    add("--lr-scheduler", type=one_of(SCHEDULERS), default="steplr", metavar="NAME", help=kinds)
    add("--lr-step-size", type=COUNT, default=30, help="steplr: epochs from one drop to the next")
    add("--lr-multi-steps", type=COUNT, nargs="+", default=[60, 100, 140], help="multisteplr: epochs of the drops")
    add("--lr-gamma", type=POSITIVE, default=0.1, help="factor of a drop, or of each epoch with exponentiallr")
    add("--lr-min", type=NONNEGATIVE, default=0.0, help="cosineannealinglr: the last learning rate")
    steps = "steps of linear warm-up in the first epoch, on top of the schedule"
    add("--lr-warmup-steps", type=NATURAL, default=0, metavar="N", help=steps)
    add("--lr-warmup-epochs", type=NATURAL, default=0, help="epochs of warm-up")
    add("--lr-warmup-method", type=one_of(WARMUPS), default="constant", metavar="NAME", help="constant or linear")
    add("--lr-warmup-decay", type=FRACTION, default=0.01, help="factor at the start of the warm-up")


def run_flags(parser: Parser) -> None:
    add = parser.add_argument_group("machine and precision").add_argument
    add("--device", default="auto", help="cuda, cpu, or auto: CUDA if there is one")
    add("--amp", action="store_true", help="mixed precision: faster where the hardware has it")
    dtypes = "auto: bf16 where the hardware has it, else fp16 with loss scaling on a GPU, fp32 on a CPU"
    add("--amp-dtype", choices=("auto", "bf16", "fp16"), default="auto", help=dtypes)
    layout = "memory layout of convolutions; equal up to rounding (default: on for convolutional networks)"
    add("--channels-last", action=argparse.BooleanOptionalAction, help=layout)
    add("--torch-compile", action="store_true", help="compile the network: faster steps, minutes of start-up")
    add("--sync-bn", action="store_true", help="batch norm over all processes (slower steps; GPUs only)")
    same = "the same result to the last bit in every run; slower on a GPU, always so on a CPU"
    add("--deterministic", "--use-deterministic-algorithms", action="store_true", help=same)
    add("--world-size", type=COUNT, default=1, help="checked against the launcher's number of processes")
    add("--dist-url", default="env://", metavar="URL", help="where the processes of a SLURM step meet")

    add = parser.add_argument_group("run, checkpoints, log").add_argument
    add("--output-dir", default=".", metavar="DIR", help="where checkpoints and logs go")
    resume = (
        "continue a run; auto: the newest good checkpoint of --output-dir, if any. Several machines need a folder that "
        "all of them share; on a GPU the run goes on to the same bits only with --deterministic"
    )
    add("--resume", default="", metavar="FILE|auto", help=resume)
    changes = "with --resume: go on with this call's settings (learning rate, batch …) where they are others"
    add("--change-settings", action="store_true", help=changes)
    add("--from-run", metavar="FILE", help="take the settings of this run.json for all that is not said here")
    add("--keep", type=NATURAL, default=3, help="full checkpoints model_E.pth of the last N epochs")
    everything = "test all sub-networks after every N epochs and the last one (default: those that are trained)"
    add("--test-all-every", type=COUNT, help=everything)
    add("--start-epoch", type=NATURAL, default=0, help="first epoch; --resume sets it by itself")
    add("--checkpoint-steps", type=COUNT, help="save every N steps too (default: after every epoch)")
    add("--print-freq", type=COUNT, default=10, help="steps from one log line to the next")
    add("--tensorboard", action="store_true", help="write TensorBoard events too (pip install tensorboard)")
    add("--seed", type=bounded(int, 0, 2**63 - 1), default=0, metavar="SEED", help="of weights, order and augmentation")


def check(methods: ModuleType, args: argparse.Namespace, defaults: dict[str, object]) -> str | None:
    """The first thing in `args` that cannot be, in one line."""
    individual, testing = args.method == "individual", args.test_only
    needs = (
        *methods.needs(args),
        ("skip_cfg", testing or args.predict or individual, "--test-only or --method individual"),
        ("budget_gmacs budget_latency budget_params", testing or args.from_table, "--test-only or --from-table"),
        ("latency_batch no_picture compare save_predictions weights_out", testing, "--test-only"),
        ("calibrate", not (args.predict and args.calibrate), "training images, so not with --predict"),
        ("weights_url weights_dir", args.weights or args.init_from, "--weights or --init-from NAME"),
        ("ra_reps", args.ra_sampler, "--ra-sampler"),
        ("ra_magnitude", args.auto_augment == "ra", "--auto-augment ra"),
        ("augmix_severity", args.auto_augment == "augmix", "--auto-augment augmix"),
    )
    if problem := check_training(args, defaults, needs):
        return problem
    if args.weights and args.resume and (testing or args.predict):
        return "--weights and --resume contradict each other without training: choose one"
    if args.init_from and args.weights:
        return "--init-from and --weights contradict each other: choose one to start from"
    return None


def check_training(args: argparse.Namespace, defaults: dict[str, object], more: Needs) -> str | None:
    """The same of the flags of optimization and of a run, which several commands have, and of their `more`."""
    dropping, scheduler = "a scheduler that drops (steplr, multisteplr, exponentiallr)", args.lr_scheduler
    needs = (
        *more,
        ("momentum", args.opt != "adamw", "--opt sgd, sgd_nesterov or rmsprop"),
        ("amp_dtype", args.amp, "--amp"),
        ("model_ema_steps model_ema_decay", args.model_ema, "--model-ema"),
        ("lr_step_size", scheduler == "steplr", "--lr-scheduler steplr"),
        ("lr_multi_steps", scheduler == "multisteplr", "--lr-scheduler multisteplr"),
        ("lr_gamma", scheduler not in ("cosineannealinglr", "linearlr"), dropping),
        ("lr_min", scheduler == "cosineannealinglr", "--lr-scheduler cosineannealinglr"),
        ("lr_warmup_method lr_warmup_decay", args.lr_warmup_epochs, "--lr-warmup-epochs"),
        ("change_settings", args.resume and not args.test_only, "--resume"),
    )
    for names, met, words in needs:
        for name in names.split():
            if getattr(args, name) != defaults[name] and not met:
                return f"--{name.replace('_', '-')} has no effect without {words}"
    if args.start_epoch and args.resume:
        return "--start-epoch and --resume contradict each other: a checkpoint knows its epoch"
    if args.opt == "sgd_nesterov" and not args.momentum:
        return "--opt sgd_nesterov needs --momentum above 0"
    if args.lr_warmup_epochs and args.lr_warmup_method == "linear" and not args.lr_warmup_decay:
        return "--lr-warmup-method linear needs --lr-warmup-decay above 0"
    return None
