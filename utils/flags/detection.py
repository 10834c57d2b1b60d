"""The flags of train_detection.py; defaults are those of torchvision's reference recipe, for 12 epochs. No torch."""

import argparse
from functools import partial
from types import ModuleType

from utils.flags.arguments import check_training, optimization_flags, run_flags
from utils.flags.data import cores_per_process
from utils.flags.parsing import COUNT, FRACTION, NATURAL, POSITIVE, Parser

DETECTORS = ("faster_rcnn", "mask_rcnn", "retinanet")
RECIPE = {"batch_size": 2, "epochs": 12, "lr": 0.02, "lr_scheduler": "multisteplr", "lr_multi_steps": [8, 11]}
RECIPE |= {"lr_warmup_steps": 1000}
# what the code shared with classification asks for and has no flag here, at values that leave it off
IDLE = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "on_corrupt": "error", "prefetch": None}
UNUSED = ("label_smoothing", "torch_compile", "test_all_every")
# settings that say how a detector is built, by the type that they have in its checkpoints
OF_NETWORK = {"detector": str, "model": str, "fpn_width": int, "anchor_scale": float, "min_size": int, "max_size": int}
OF_NETWORK |= {"rois": int, "train_norms": bool}


def parser(methods: ModuleType) -> Parser:
    description = "Train and test detectors whose depth is chosen at run time, on data in COCO's format."
    parser = Parser("train_detection.py", description, partial(check, methods))
    add = parser.add_argument_group("detector").add_argument
    add("--detector", choices=DETECTORS, help="default: faster_rcnn, or that of the weights")
    body = "its body, a network of train_adn.py (default: resnet50, or that of the weights)"
    add("--model", metavar="NAME", help=body)
    add("--init-from", metavar="FILE|NAME", help="the body's weights: a classification checkpoint, or IMAGENET1K_V2 …")
    add("--weights-dir", metavar="DIR", help="where downloaded weights are kept")
    norms = "train the body's norms (default: frozen with their statistics, which needs --init-from)"
    add("--train-norms", action="store_true", default=None, help=norms)
    trained = "only the body's last N stages are trained (default: all; with --init-from 3, but timm's networks whole)"
    add("--trained-stages", type=NATURAL, metavar="N", help=trained)
    width = "channels of the pyramid, by which the heads are as wide as torchvision's at 256 (default: 256)"
    add("--fpn-width", type=COUNT, metavar="N", help=width)
    add("--anchor-scale", type=POSITIVE, metavar="X", help="an anchor's side in strides (default: 8, retinanet 4)")
    add("--min-size", type=COUNT, help="images are resized: the shorter side (default: 800)")
    add("--max-size", type=COUNT, help="and the longer one at most (default: 1333)")
    add("--rois", type=COUNT, help="boxes of an image that train the second stage's heads (default: 512)")

    add = parser.add_argument_group("data").add_argument
    add("--data-path", metavar="DIR", help="a folder with annotations/instances_{train,val}*.json and their images")
    add("--hflip-prob", type=FRACTION, default=0.5, metavar="P", help="probability of a horizontal flip")
    add("-j", "--workers", type=NATURAL, default=min(4, cores_per_process()), help="loader processes")

    methods.add_flags(parser.add_argument_group("method and self-distillation"))
    optimization_flags(parser)
    run_flags(parser)
    add = parser.add_argument_group("evaluation").add_argument
    add("--test-only", action="store_true", help="evaluate --weights and train nothing")
    add("--weights", metavar="FILE", help="a checkpoint of this command")
    add("--skip-cfg", nargs="+", metavar="CFG", help="sub-networks to test: words like TTFF, super, base, or all")
    own = "give each depth tested statistics of trained norms of its own, by N batches of training images"
    add("--calibrate", type=NATURAL, default=0, metavar="N", help=own)
    parser.set_defaults(**RECIPE, **IDLE)
    return parser


def check(methods: ModuleType, args: argparse.Namespace, defaults: dict[str, object]) -> str | None:
    two_stages = args.detector != "retinanet"
    needs = (
        *methods.needs(args),
        ("rois", two_stages, "--detector faster_rcnn or mask_rcnn"),
        ("skip_cfg", args.test_only or args.method == "individual", "--test-only or --method individual"),
        ("calibrate", args.test_only, "--test-only"),
        ("resume", not args.test_only, "a training; a test takes --weights"),
        ("weights_dir", args.init_from, "--init-from NAME"),
        (" ".join(UNUSED), False, "train_adn.py: a detector has no such thing"),
    )
    if not args.data_path:
        return "--data-path is missing: give a folder with annotations/instances_{train,val}*.json and their images"
    if args.test_only and not args.weights:
        return "--test-only needs --weights: a checkpoint of this command"
    if args.init_from and args.weights:
        return "--init-from and --weights contradict each other: choose one to start from"
    return check_training(args, defaults, needs)


def fill_defaults(args: argparse.Namespace, known: dict[str, object]) -> None:
    """Set what the user left open, by what the weights were made with or else by torchvision's defaults."""
    usual = {"detector": "faster_rcnn", "model": "resnet50", "fpn_width": 256, "min_size": 800, "max_size": 1333}
    for name in OF_NETWORK:
        if getattr(args, name) is None:
            setattr(args, name, known.get(name, usual.get(name)))
    if args.trained_stages is None and args.init_from and ":" not in args.model:
        args.trained_stages = 3  # of ResNets the stem and the first layer are not trained
