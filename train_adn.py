"""Train and test adaptive-depth networks.

    python train_adn.py --data-path digits --stem small                           one process
    torchrun --nproc_per_node=4 train_adn.py --model resnet50 --data-path DIR     4 GPUs of one machine
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 train_adn.py …    two machines

Exit codes: 0 done, 2 a mistake to mend (one line says which), 75 stopped by a signal and saved (--resume auto goes on).
"""

import methods
from utils.flags.arguments import parser

if __name__ == "__main__":
    parser(methods).parse_args()  # --help and mistakes are answered before torch, which takes seconds, is imported

import argparse
import logging
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import models
import presets
from sampler import TrainBatches
from utils import processes, setup
from utils.data.loading import eval_loader, first_few, load_data, refuse_other_classes, start_workers
from utils.errors import UserError
from utils.evaluate import calibration, predict, report, table
from utils.flags.data import fill_defaults
from utils.flags.evaluation import chosen
from utils.train import folder, log, run


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    args = parser(methods).parse_args(argv)
    work = choose if args.from_table else test if args.test_only else predict_images if args.predict else train
    return carry_out("train_adn.py", work, args)


def carry_out(name: str, work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Do the work of the command `name` in all processes of the run. Returns its exit code.

    A mistake, which all of them may make together, is said by one; that another process failed is no news of this one.
    """
    try:
        processes.connect(args.dist_url, args.world_size)
        log.setup()
        code = work(args)
    except (UserError, models.WeightsError) as error:
        mistake = str(error)
    except torch.OutOfMemoryError as error:
        mistake = f"{str(error).partition('. ')[0]}: lower --batch-size (--grad-accum makes up for it) or give --amp"
    except RuntimeError:
        if not processes.another_failed():
            raise
        return 1
    else:
        processes.leave()
        return code
    if not processes.already_reported(mistake):
        sys.stderr.write(f"{name}: error: {mistake}\n")
    return 2


def choose(args: argparse.Namespace) -> int:
    """--from-table: the best sub-network within a budget, by figures that are there already."""
    budget = table.Budget.of(args)
    if not budget:
        raise UserError("--from-table needs a budget: --budget-gmacs, --budget-latency or --budget-params")
    rows, facts = table.read(args.from_table)
    logging.info("%s", table.choice(budget.best(rows), budget, facts))
    return 0


def train(args: argparse.Namespace) -> int:
    fill(args, methods.defaults(args))
    data = load_data(args)
    place = processes.rank(), processes.world_size()
    repeats = args.ra_reps if args.ra_sampler else 1
    batches = TrainBatches(len(data.train), args.batch_size, *place, args.seed, repeats)
    loaders = run.make_loaders(args, data, batches)
    machine = start(args, getattr(methods.METHODS[args.method], "few_shapes", True))
    saved = saved_weights(args)
    model = build(args, len(data.classes), args.train_crop_size, saved)
    if saved:
        logging.info("Starting from %s: %s", saved.source, saved.about)
    setup.refuse_another_size(model, args.val_crop_size)
    setup.refuse_single_values(model, batches.batch_size, min(args.sizes or [args.train_crop_size]))
    method = methods.METHODS[args.method](args, model)
    setup.refuse_other_views(model, method.tested.values(), args.sizes or [args.val_crop_size])
    training = run.make_run(args, machine, data.classes, model, method)
    if args.teacher:
        method.outside = teacher(args, data.classes).to(machine.device)
        training.state.teacher = method.outside.sum()
    run.resume(training.state, read_checkpoint, models.load_state)
    return run.train(training, data, loaders)


def test(args: argparse.Namespace) -> int:
    """--test-only: one sub-network, several, or the best within a budget."""
    saved = saved_weights(args)
    fill(args, saved.settings if saved else {})
    data = load_data(args, tested_sizes(args))
    if saved:
        refuse_other_classes(saved.source, saved.classes, data.classes, "give the --data-path of its training")
    loader = eval_loader(data, args, processes.rank(), processes.world_size())
    start_workers(loader)
    training_images = calibration.calibration_loader(data, args, args.workers) if args.calibrate else None
    machine = start(args)
    model = build(args, len(data.classes), args.val_crop_size, saved)
    about = {"weights": args.weights or (saved and saved.source), "weights_are": saved and saved.about}
    about["statistics"] = use_statistics(args, machine, model, saved, training_images)
    blank = [model.name(subnet) for subnet in report.asked_for(args, model) if not model.ready(subnet)]
    if blank:
        problem = "has no running statistics of its own: calibrate it first, by --calibrate N"
        raise UserError(f"width {first_few(blank, 5)} {problem}")
    if args.weights_out:
        classes, statistics = data.classes, {"model": model.statistics()}
        whole = {"model": model.state_dict(), "statistics": statistics, "classes": classes, "args": args}
        whole["trained"] = saved.trained if saved else []
        processes.on_main(lambda: folder.write_weights(Path(args.weights_out), whole))
    published = models.zoo.published(args.model) if len(data.classes) == 1000 else {}
    report.test(args, machine, model, data, loader, about, published)
    return 0


def predict_images(args: argparse.Namespace) -> int:
    """--predict: no data needed, the weights know their classes, or how many there are."""
    saved = saved_weights(args)
    if saved is None:
        raise UserError("--predict needs trained weights: give --weights, not --init-from")
    fill(args, saved.settings)
    transform = presets.test_transform(args, tested_sizes(args) or [args.val_crop_size])
    classes = saved.classes or models.zoo.class_names(models.num_classes(saved.state))
    data = predict.images_at(Path(args.predict), classes, transform)
    loader = eval_loader(data, args)
    start_workers(loader)
    machine = start(args)
    model = build(args, len(classes), args.val_crop_size, saved)
    use_statistics(args, machine, model, saved)
    batches = machine.place(model, args.channels_last)(loader)
    predict.predict(
        model, data, batches, chosen(model, args.skip_cfg), machine.autocast, strict=args.on_corrupt == "error"
    )
    return 0


def saved_weights(args: argparse.Namespace) -> models.Saved | None:
    """What --weights names or, to test or predict, --resume. To train, and with --init-from, there may be neither."""
    testing = args.test_only or args.predict
    if testing and args.resume == "auto":
        path = folder.newest_readable(Path(args.output_dir), read_checkpoint)
        if path is None:
            raise UserError(f"--resume auto: no checkpoint in {args.output_dir}")
    elif testing and args.resume:
        path = Path(args.resume)
    elif args.weights:
        path = models.zoo.weights_file(args.weights, model=args.model, url=args.weights_url, folder=args.weights_dir)
    elif testing and not args.init_from:
        raise UserError("--test-only and --predict need --weights: a file, or the name of a released network")
    else:
        return None
    saved = models.read_weights(path, args.weights, args.model, args.model_ema)
    if len(saved.trained) == 1:
        saved.settings["skip_cfg"] = saved.trained
    return saved


def read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return models.read_checkpoint(path)
    except models.WeightsError as error:
        raise UserError(str(error)) from None


def start(args: argparse.Namespace, few_shapes: bool = True) -> setup.Machine:
    """Join the other processes, if any, and say what this one computes with. Loaders' workers are forked before it."""
    device = processes.join(setup.choose_device(args.device))
    amp_dtype = args.amp_dtype if args.amp else None
    colours = getattr(args, "normalize", "imagenet")  # a detector normalises by itself
    return setup.set_up(device, args.seed, args.deterministic, amp_dtype, colours, few_shapes)


def use_statistics(
    args: argparse.Namespace,
    machine: setup.Machine,
    model: models.ManyNetworks,
    saved: models.Saved | None,
    images: DataLoader | None = None,
) -> str:
    """Give the network running statistics of each sub-network's own, by `images` or its file; which, in words."""
    if images:
        on_device = machine.place(model, args.channels_last)
        norms = calibration.calibrate(model, images, on_device, args.on_corrupt, tested(args, model))
        return "each sub-network's own, estimated now" if norms else "none, there are no batch norms"
    if saved and saved.statistics and args.calibrate is None:
        model.load_statistics(saved.statistics, saved.source)
        return "each sub-network's own"
    return "of training"


def teacher(args: argparse.Namespace, classes: list[str]) -> models.teacher.Teacher:
    """What --teacher means, tried on a blank image."""
    given = presets.COLOURS[args.normalize]
    found = models.teacher.load(args.teacher, subnet=args.teacher_subnet, size=args.teacher_size, given=given)
    refuse_other_classes(f"--teacher {args.teacher}", found.classes, classes, "it cannot teach these")
    models.teacher.check(found, args.teacher, len(classes), args.train_crop_size)
    logging.info("--teacher %s: weights %s", args.teacher, found.sum())
    return found


def fill(args: argparse.Namespace, known: Mapping[str, object]) -> None:
    """Set what the user left open; a network of several resolutions says on which sizes it is usually trained."""
    usual_sizes = getattr(models.MODELS.get(args.model or known.get("model")), "sizes", None)
    fill_defaults(args, known, usual_sizes)


def tested(args: argparse.Namespace, model: models.ManyNetworks) -> list[Hashable]:
    """The sub-networks that --skip-cfg names, or a budget is for; all, if their statistics are to be kept in a file."""
    everything = model.subnets if args.weights_out else []
    return list(dict.fromkeys([*everything, *report.asked_for(args, model)]))


def tested_sizes(args: argparse.Namespace) -> list[int] | None:
    """The sizes of images that these take, where they are not all the same: asked of a network without weights."""
    if not args.sizes:
        return None
    with torch.device("meta"):
        model = untrained(args, 1000, args.val_crop_size)
    return sorted({model.size(subnet) for subnet in tested(args, model)}, reverse=True)


def build(args: argparse.Namespace, classes: int, image_size: int, saved: models.Saved | None) -> models.ManyNetworks:
    """The network for so many classes, with the weights of --init-from or `saved` if there are any."""
    model = untrained(args, classes, image_size)
    if args.init_from:
        begin = models.start.find(args.init_from, args.model, args.weights_url, args.weights_dir)
        fitted = models.load_plain(model, begin.state, new_head=True, source=begin.source)
        logging.info("--init-from %s: %s", begin.source, fitted.words)
    if saved:
        models.load_state(model, saved.state, source=saved.source)
    return model


def untrained(args: argparse.Namespace, classes: int, image_size: int) -> models.ManyNetworks:
    settings = {name: getattr(args, name) for name in models.SHAPE}
    settings["switchable_norms"] = False if args.no_switchable_norms else None
    try:
        return models.build(args.model, num_classes=classes, image_size=image_size, **settings)
    except (ValueError, AssertionError) as error:
        raise UserError(f"--model {args.model}: {error}") from None


if __name__ == "__main__":
    processes.run(main)
