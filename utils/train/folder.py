"""The folder of a run: which files there are, whose they are, and what becomes of those of an earlier run.

A run has a name of its own, which its checkpoints, its metrics.jsonl and its run.json hold. Checkpoints also say what
launched it: when a launcher starts a run again, it goes on from its own checkpoints, and from nobody else's.
"""

import argparse
import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision

from utils import processes
from utils.errors import UserError
from utils.files import as_user_error, link_or_copy, whole_file, write_json

log = logging.getLogger(__name__)

NEWEST, PREVIOUS, BEST = "checkpoint.pth", "checkpoint_previous.pth", "best.pth"
METRICS, ABOUT, DIAGNOSTIC = "metrics.jsonl", "run.json", "diagnostic.json"
NUMBERED, BOARD = "model_*.pth", "events.out.tfevents.*"
# what best.pth and --weights-out hold
FOR_TESTING = ("model", "model_ema", "statistics", "epoch", "args", "classes", "run", "trained", "versions")


def save(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the newest checkpoint; the one before it stays beside it."""
    newest = folder / NEWEST
    if newest.exists():
        link_or_copy(newest, folder / PREVIOUS)
    _write(newest, content)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        with whole_file(path) as file:
            torch.save(content, file)
    except (UserError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError of its own
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        way_out = "what was there is still there: make room, then continue with --resume auto"
        raise UserError(f"{path}: cannot be written ({reason}); {way_out}") from None


def keep_epoch(folder: Path, content: Mapping[str, Any], keep: int, best: bool) -> None:
    """The newest checkpoint stays under its epoch's name, for `keep` epochs; the best one's weights as `best.pth`."""
    epoch = content["epoch"]
    if keep:
        link_or_copy(folder / NEWEST, folder / f"model_{epoch}.pth")
        oldest = folder / f"model_{epoch - keep}.pth"
        with as_user_error(oldest, "is no longer to be kept, and cannot be removed"):
            oldest.unlink(missing_ok=True)
    if best:
        write_weights(folder / BEST, content)


def write_weights(path: Path, content: Mapping[str, Any]) -> None:
    """What of a checkpoint is for testing, alone."""
    _write(path, {name: content[name] for name in FOR_TESTING if name in content})


def newest_readable(
    folder: Path, read: Callable[[Path], dict[str, Any]], launched_by: str | None = None
) -> Path | None:
    """The newest checkpoint in `folder` that can be read, or None if there is none at all.

    With `launched_by`, only one that a run of this launch has written.
    """
    numbered = sorted(folder.glob(NUMBERED), key=lambda path: path.stat().st_mtime, reverse=True)
    candidates = [path for path in (folder / NEWEST, folder / PREVIOUS, *numbered) if path.exists()]
    unreadable = 0
    for path in candidates:
        try:
            content = read(path)
        except UserError as error:
            log.warning("passed over: %s", error)
            unreadable += 1
            continue
        if launched_by in (None, content.get("launch")):
            return path
    if unreadable and unreadable == len(candidates):
        raise UserError(f"{folder}: none of its {len(candidates)} checkpoints can be read; start anew elsewhere")
    return None


def set_aside(folder: Path) -> None:
    """A new run takes nothing away from an earlier one in its folder: all that one's files move into a folder there."""
    names = (NEWEST, PREVIOUS, BEST, METRICS, ABOUT, DIAGNOSTIC, NUMBERED, BOARD)
    if not (found := [path for name in names for path in folder.glob(name)]):
        return
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(max(path.stat().st_mtime for path in found)))
    number, place = 1, folder / f"earlier-{stamp}"
    while place.exists():
        number, place = number + 1, folder / f"earlier-{stamp}-{number}"
    with as_user_error(place, "files of an earlier run cannot be moved there; give another --output-dir"):
        place.mkdir()
        for path in found:
            path.replace(place / path.name)
    log.warning("an earlier run's files in %s are now in %s (--resume auto would have continued it)", folder, place)


def remove_half_written(folder: Path) -> None:
    """Remove what a run that was killed while writing has left."""
    for path in (path for name in ("*.pth", METRICS, ABOUT) for path in folder.glob(f".{name}*.tmp")):
        with as_user_error(path, "half written by a killed run, cannot be removed; give another --output-dir"):
            path.unlink(missing_ok=True)


def trim_metrics(folder: Path, epoch: int, step: int) -> None:
    """Drop the lines after the point from which a run goes on: it will write them again."""
    path = folder / METRICS
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
            place = (record["epoch"], record["step"])
            done = place[0] < epoch or (record["event"] == "step" and place <= (epoch, step))
        except (ValueError, TypeError, KeyError):  # the run was killed while it wrote
            continue
        if done:
            kept.append(line)
    with whole_file(path) as file:
        file.write(b"".join(kept))


def write_about(folder: Path, run: str, args: argparse.Namespace, device: torch.device) -> None:
    """run.json: arguments, versions and git commit, so that a result can be traced to what made it, or made again."""
    path = folder / ABOUT
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None  # not a clone, or no git here
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    versions |= {"torchvision": torchvision.__version__, "cuda": torch.version.cuda}
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    try:
        before = json.loads(path.read_text())
        starts = before["starts"] if before["run"] == run else []
    except (OSError, ValueError, TypeError, KeyError):
        starts = []
    content = {
        "run": run,
        "starts": [*starts, {"time": now, "command": sys.argv}],
        "args": vars(args),
        "processes": processes.world_size(),
        "versions": versions,
        "device_type": device.type,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "git_commit": commit,
    }
    write_json(path, content)
