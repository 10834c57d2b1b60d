"""What cannot be is said at once, by the name of its flag."""

import argparse
import shlex
import subprocess
import sys

import pytest

import methods
from utils.errors import UserError
from utils.flags.arguments import parser
from utils.flags.data import cores_per_process, fill_defaults


def completed(*flags: str, known: dict | None = None) -> argparse.Namespace:
    args = parser(methods).parse_args(flags)
    fill_defaults(args, known or {})
    return args


@pytest.mark.parametrize(
    "flags",
    [
        ("--train-crop-size", "0"),
        ("--val-crop-size", "-3"),
        ("--hflip-prob", "1.5"),
        ("--random-erase", "-0.1"),
        ("--ra-magnitude", "31"),
        ("--augmix-severity", "11"),
        ("--auto-augment", "imagenette"),
        ("--workers", "-1"),
        ("--prefetch", "0"),
        ("--ra-reps", "0"),
        ("--mixup-alpha", "nan"),
        ("--train-images", "0"),
        ("--val-split", "0.6"),
    ],
)
def test_impossible_settings_are_refused_by_name(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        completed(*flags)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flags[0]}" in last.replace("-j/", "")
    assert flags[1] in last


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(UserError, match=r"^--val-crop-size 300 does not fit into --val-resize-size 256: lower"):
        completed("--val-crop-size", "300")


def test_what_is_known_of_a_checkpoint_comes_after_the_users_wish_and_before_the_datas_habit():
    known = {"val_crop_size": 96, "val_resize_size": 100, "interpolation": None}
    args = completed("--data-path", "/data", "--val-resize-size", "128", known=known)
    assert (args.val_resize_size, args.val_crop_size, args.train_crop_size) == (128, 96, 224)
    assert args.interpolation == "bilinear"


def test_a_share_to_validate_is_for_a_folder_without_val_and_a_checkpoint_brings_its_own(tmp_path):
    pets = str(tmp_path)
    assert completed("--data-path", pets, known={"val_split": 0.2}).val_split == 0.2
    assert completed("--data-path", pets, "--val-split", "0.1", known={"val_split": 0.2}).val_split == 0.1
    assert completed("--data-path", "digits", known={"val_split": 0.2}).val_split is None
    (tmp_path / "val").mkdir()
    assert completed("--data-path", pets, known={"val_split": 0.2}).val_split is None
    for path in (pets, "digits"):
        with pytest.raises(UserError, match=f"^--val-split: --data-path {path} has images of its own to validate: "):
            completed("--data-path", path, "--val-split", "0.1")


@pytest.mark.parametrize(
    ("flag", "path"),
    [("--decode=pil", "digits"), ("--cache-dataset", "cifar10"), ("--download", "digits"), ("--download", "/data")],
)
def test_a_flag_without_effect_is_refused(flag, path):
    with pytest.raises(UserError, match=f"{flag.split('=')[0]} has no effect on --data-path {path}"):
        completed(flag, "--data-path", path)


def test_defaults_follow_the_data_and_yield_to_the_user():
    for name, size in (("digits", 32), ("fashion-mnist", 28), ("/some/folder", 224)):
        args = completed("--data-path", name, "--hflip-prob", "0.3")
        assert (args.train_crop_size, args.val_crop_size, args.hflip_prob) == (size, size, 0.3)


def test_what_trained_says_how_images_look():
    known = {"train_crop_size": 176, "auto_augment": "ra", "ra_magnitude": 5, "random_erase": 0.1, "hflip_prob": 0.0}
    args = parser(methods).parse_args(["--test-only", "--data-path", "/data", "--random-erase", "0.2"])
    fill_defaults(args, known)
    assert {name: getattr(args, name) for name in known} == {**known, "random_erase": 0.2}
    assert args.augmix_severity == 3


def test_slurm_says_how_many_processes_share_a_machine(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1000(x2),4")
    assert completed().workers == 1


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
