"""The sums that the log reports: one batch gone wrong does not spoil them, and older checkpoints' sums go on."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from utils.train.log import Log, Meters

CPU = torch.device("cpu")


def result(loss: float, *best: int) -> SimpleNamespace:
    """A pass over a batch: its loss and the class of 10 that it finds likeliest for each image, then the next ones."""
    logits = torch.stack([torch.roll(torch.arange(10, 0, -1.0), shift) for shift in best])
    return SimpleNamespace(loss=torch.tensor(loss) / 4, logits=logits.bfloat16(), weight=0.25)


def test_averages_are_those_of_all_images():
    meters = Meters(2, CPU)
    meters.add([result(2.0, 3, 3), result(1.0, 3, 2)], torch.tensor([3, 4]))
    meters.add([result(5.0, 9), result(1.0, 0)], torch.eye(10)[[9]])  # soft labels
    assert meters.values().tolist() == [[[9, 2, 3, 3, 0], [3, 1, 2, 3, 0]]]
    assert Meters.averages(["super", "base"], meters.values().sum(0)) == pytest.approx(
        {"loss_super": 3, "acc1_super": 200 / 3, "acc5_super": 100}
        | {"loss_base": 1, "acc1_base": 100 / 3, "acc5_base": 200 / 3}
    )


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_is_counted_and_left_out_of_the_mean(wrong, tmp_path):
    meters = Meters(1, CPU)
    meters.add([result(wrong, 3, 3)], torch.tensor([3, 3]))
    assert meters.values().tolist() == [[[0, 2, 2, 2, 2]]]
    mean = Meters.averages(["super"], meters.values()[0])
    assert math.isnan(mean["loss_super"])
    log = Log(tmp_path)
    log.start("a run", 0, 0)
    log.record("step", 0, 1, mean | {"infinite": -math.inf})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (line["loss_super"], line["infinite"], line["acc1_super"]) == (None, None, 100)
    meters.add([result(3.0, 3)], torch.tensor([3]))
    assert Meters.averages(["super"], meters.values()[0]) == {"loss_super": 3, "acc1_super": 100, "acc5_super": 100}


@pytest.mark.parametrize("not_finite", [[], [2.0]])  # the first version did not count them
def test_a_checkpoint_s_sums_go_on(not_finite):
    saved = [[[8.0, 1.0, 2.0, 4.0, *not_finite]]]
    meters = Meters(1, CPU, saved)
    meters.add([result(1.0, 3)], torch.tensor([3]))
    assert meters.values().tolist() == [[[9, 2, 3, 5, sum(not_finite)]]]
    two_processes = Meters(1, CPU, saved * 2)  # of another number of processes: the main process takes all
    assert two_processes.values()[0, 0, :4].tolist() == [16, 2, 4, 8]
    assert not Meters(2, CPU, saved).values().any()  # of a method with another number of passes
