"""What cannot be is said at once, by the name of its flag."""

import argparse
import shlex
import subprocess
import sys

import pytest

from utils.errors import UserError
from utils.flags.data import complete, cores_per_process, data_flags


def completed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    data_flags(parser)
    args = parser.parse_args(flags)
    args.batch_size = 32
    complete(args)
    return args


@pytest.mark.parametrize(
    "flags",
    [
        ("--train-crop-size", "0"),
        ("--val-crop-size", "-3"),
        ("--val-crop-size", "300"),
        ("--hflip-prob", "1.5"),
        ("--random-erase", "-0.1"),
        ("--ra-magnitude", "31"),
        ("--augmix-severity", "11"),
        ("--auto-augment", "imagenette"),
        ("--workers", "-1"),
        ("--prefetch", "0"),
        ("--ra-reps", "0"),
        ("--mixup-alpha", "nan"),
    ],
)
def test_impossible_settings_are_refused_by_name(flags):
    with pytest.raises(UserError, match=f"^{flags[0]} {flags[1]}.*(give|choose|lower)"):
        completed(*flags)


@pytest.mark.parametrize(
    ("flag", "path"),
    [("--decode=pil", "digits"), ("--cache-dataset", "cifar10"), ("--download", "digits"), ("--download", "/data")],
)
def test_a_flag_without_effect_is_refused(flag, path):
    with pytest.raises(UserError, match=f"{flag.split('=')[0]} has no effect on --data-path {path}"):
        completed(flag, "--data-path", path)


def test_the_recipes_flags_are_understood():
    line = """--auto-augment ta_wide --random-erase 0.1 --mixup-alpha 0.2 --cutmix-alpha 1.0 --train-crop-size 176
        --val-resize-size 232 --ra-sampler --ra-reps=4 --interpolation bicubic --data-path /data -j 3"""
    args = completed(*shlex.split(line))
    assert (args.train_crop_size, args.val_resize_size, args.val_crop_size) == (176, 232, 224)
    assert (args.ra_reps, args.workers, args.random_erase) == (4, 3, 0.1)


def test_the_cores_of_a_machine_are_shared_by_its_processes(monkeypatch):
    alone = cores_per_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores_per_process() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert completed().workers == 1


def test_flags_come_without_torch():
    code = "import sys, utils.flags.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
