"""What the project's commands share: how one begins, how its work ends, and a mistake said in one line."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
from utils import processes, setup
from utils.errors import UserError
from utils.train import log


def carry_out(name: str, work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Do the work of the command `name` in all processes of the run. Returns its exit code.

    A mistake, which all of them may make together, is said by one; that another process failed is no news of this one.
    """
    try:
        processes.connect(args.dist_url, args.world_size)
        log.setup()
        code = work(args)
    except (UserError, models.WeightsError) as error:
        if not processes.already_reported(str(error)):
            sys.stderr.write(f"{name}: error: {error}\n")
        return 2
    except RuntimeError:
        if not processes.another_failed():
            raise
        return 2
    processes.leave()
    return code


def start(args: argparse.Namespace) -> setup.Machine:
    """Join the other processes, if any, and say what this one computes with. Loaders' workers are forked before it."""
    device = processes.join(setup.choose_device(args.device))
    amp_dtype = args.amp_dtype if args.amp else None
    colours = getattr(args, "normalize", "imagenet")  # a detector normalises by itself
    return setup.set_up(device, args.seed, args.deterministic, amp_dtype, colours)


def read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return models.read_checkpoint(path)
    except models.WeightsError as error:
        raise UserError(str(error)) from None
