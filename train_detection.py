"""Train and test detectors of adaptive depth on data in COCO's format.

    python train_detection.py --model resnet50 --init-from IMAGENET1K_V2 --data-path COCO
    torchrun --nproc_per_node=8 train_detection.py --detector mask_rcnn --init-from resnet50_adn.pth --data-path COCO
    python train_detection.py --test-only --weights best.pth --skip-cfg all --data-path COCO

Exit codes are those of train_adn.py: 0 done, 2 a mistake to mend, 75 stopped by a signal and saved.
"""

from methods import detection as methods
from utils.flags.detection import OF_NETWORK, fill_defaults, parser

if __name__ == "__main__":
    parser(methods).parse_args()  # --help and mistakes are answered before torch, which takes seconds, is imported

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import models.detection
from train_adn import carry_out, read_checkpoint, start
from utils import processes
from utils.data.loading import eval_loader, refuse_other_classes, start_workers
from utils.detection import coco
from utils.detection import run as detection
from utils.errors import UserError
from utils.flags.evaluation import chosen
from utils.train import run


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    args = parser(methods).parse_args(argv)
    return carry_out("train_detection.py", test if args.test_only else train, args)


def train(args: argparse.Namespace) -> int:
    saved = read_checkpoint(Path(args.weights)) if args.weights else {}
    fill_defaults(args, settings(saved, args.weights))
    data = coco.load_data(args)
    place = processes.rank(), processes.world_size()
    batches = coco.LikeShapes(data.train.aspects(), args.batch_size, *place, args.seed)
    loaders = run.make_loaders(args, data, batches)
    machine = start(args, few_shapes=False)
    model = build(args, data.classes, saved)
    method = methods.METHODS[args.method](args, model)
    training = detection.prepare(run.make_run(args, machine, data.classes, model, method))
    run.resume(training.state, read_checkpoint, models.load_state)
    return run.train(training, data, loaders)


def test(args: argparse.Namespace) -> int:
    saved = read_checkpoint(Path(args.weights))
    fill_defaults(args, settings(saved, args.weights))
    data = coco.load_data(args)
    loader = eval_loader(data, args, processes.rank(), processes.world_size())
    start_workers(loader)
    machine = start(args, few_shapes=False)
    model = build(args, data.classes, saved).to(machine.device)
    subnets = chosen(model, args.skip_cfg)
    if args.calibrate:
        detection.calibrate(args, machine.device, model, data, subnets)
    detection.test(args, machine.device, machine.autocast, model, loader, subnets)
    return 0


def settings(saved: dict[str, Any], source: str | None) -> dict[str, Any]:
    """What a checkpoint says of how its detector is built."""
    said = models.settings_of(saved, OF_NETWORK, source)
    if saved and said["detector"] is None:
        raise UserError(f"--weights {source}: no checkpoint of this command; a body's weights start it by --init-from")
    return {name: value for name, value in said.items() if value is not None}


def build(args: argparse.Namespace, classes: list[str], saved: dict[str, Any]) -> models.detection.Detector:
    """The detector, with the weights of --init-from in its body, or `saved` ones."""
    sizes = {"min_size": args.min_size, "max_size": args.max_size}
    rois = {} if args.detector == "retinanet" else {"box_batch_size_per_image": args.rois or 512}
    try:
        body = models.build(args.model)
        if args.init_from:
            begin = models.start.find(args.init_from, args.model, folder=args.weights_dir)
            models.load_plain(body, begin.state, new_head=True, source=begin.source)
            logging.info("--init-from %s", begin.source)
        elif not (args.train_norms or saved):
            raise UserError("norms of a body without weights cannot be frozen: give --init-from or --train-norms")
        model = models.detection.build(
            args.detector,
            body,
            len(classes) + 1,
            trained_norms=bool(args.train_norms),
            trained_stages=args.trained_stages,
            width=args.fpn_width,
            anchor_scale=args.anchor_scale,
            **sizes,
            **rois,
        )
    except (ValueError, AssertionError) as error:
        raise UserError(f"--model {args.model}: {error}") from None
    if saved:
        refuse_other_classes(args.weights, saved.get("classes"), classes, "give the --data-path of its training")
        state = models.model_state(saved, ema=args.model_ema, source=args.weights)
        models.load_state(model, state, source=args.weights)
    return model


if __name__ == "__main__":
    processes.run(main)
