"""Several resolutions through the command: two processes, killed and continued, tested at each size, predicted."""

import json

import pytest

import train_adn
from deploy import profile
from tests.pictures import image_folder
from tests.runs import Command, assert_same_run, kill_all, wait_for_steps

FLAGS = "--model meta_resnet20 --method san --larger-teach --sizes 32 24 16 --normalize none --cutmix-alpha 0"


def test_a_killed_run_of_several_resolutions_goes_on_to_the_same_bits_and_is_tested_at_each_size(tmp_path, capsys):
    data = image_folder(tmp_path / "data", train=12, val=3)
    two, whole, broken = Command(data, 2, *FLAGS.split(), "--calibrate", "2"), tmp_path / "whole", tmp_path / "broken"
    two.whole(whole)
    process = two.start(broken, "--workers", "0")
    wait_for_steps(process, broken, 5)
    kill_all(process)
    assert "Resumed" in two.whole(broken, "--resume", "auto")
    assert_same_run(whole, broken)
    weights, out = ("--weights", str(whole / "checkpoint.pth"), "--workers", "0"), tmp_path / "out"
    test = ["--test-only", *weights, "--data-path", str(data), "--output-dir", str(out), "--no-picture"]
    assert train_adn.main([*test, "--skip-cfg", "all", "--calibrate", "1", "--weights-out", str(tmp_path / "w")]) == 0
    facts = json.loads((out / "subnets.json").read_bytes())
    rows = {row["name"]: row for row in facts["subnets"]}
    assert facts["sizes"] == [32, 24, 16]
    assert facts["normalize"] == "none"
    assert rows["32"]["gmacs"] / rows["16"]["gmacs"] == pytest.approx(4, rel=0.01)
    test[test.index("--weights") + 1] = str(tmp_path / "w")
    assert train_adn.main([*test, "--skip-cfg", "20@16", "20@24+16", "24", "--save-predictions"]) == 0
    said = capsys.readouterr().out
    assert "statistics each sub-network's own" in said
    assert {row["name"] for row in json.loads((out / "subnets.json").read_bytes())["subnets"]} == {
        *("20@16", "20@24+16", "24")
    }
    assert train_adn.main([*test, "--budget-gmacs", "0.02"]) == 0
    assert train_adn.main([*weights, "--predict", str(data / "val"), "--skip-cfg", "24", "20@24"]) == 0
    said = capsys.readouterr().out
    assert "best within 0.02 GMACs: " in said
    assert "\n  20@24  " in said
    flags = ["--weights", str(tmp_path / "w"), "--batches", "1", "--device", "cpu", "-o", str(tmp_path / "p.json")]
    profile.main([*flags, "--subnets", "32", "16", "--rounds", "5", "--energy-seconds", "0"])
    costs = json.loads((tmp_path / "p.json").read_bytes())["subnets"]
    assert costs["32"]["macs"] / costs["16"]["macs"] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("flags", "reason"),
    {
        "--model meta_resnet20 --method individual --skip-cfg 20@24 --sizes 32 24": "20@24 takes images of 20, which",
        "--model resnet20 --sizes 32 24": "resnet20 has no setting sizes",
        "--model resnet20 --method san": "--method san trains a network of several resolutions",
        "--model resnet20 --larger-teach": "--larger-teach has no effect without --method san",
    }.items(),
)
def test_a_mistake_is_one_line(mistake, tmp_path, flags, reason):
    train = ["--data-path", "digits", "--output-dir", tmp_path, "--epochs", "1"]
    assert reason in mistake(train_adn.main, *train, *flags.split())
