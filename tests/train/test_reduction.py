"""Gradients after a step on two processes: the average of the two, every byte sent once."""

import json

import pytest

from tests.launch import launch


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("reduction") / "results.json"
    done = launch("tests/train/reduction_worker.py", path, processes=2)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_reduced_gradients_are_the_average_and_processes_stay_equal(results):
    for result in results:
        assert result["equal"], result["name"]
        assert result["same"], result["name"]


def test_every_gradient_is_sent_once_a_step(results):
    for result in results:
        assert result["bytes"] == [result["used"]] * 3, result["name"]
        if result["individual"]:
            assert result["used"] < result["parameters"]
        else:
            assert result["used"] == result["parameters"], result["name"]


def test_buckets_leave_before_the_last_backward_ends(results):
    """Not in the first step, which learns the order."""
    for result in results:
        assert result["early"][0] == 0
        assert result["early"][1:] == [result["buckets"]] * 2, result["name"]
