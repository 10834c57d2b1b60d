"""Two processes and several passes a step: gradients are those of the summed loss, averaged, and travel once."""

import json

import pytest

from tests.launch import together
from tests.train.gradients_worker import CASES


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("gradients") / "results.json"
    done = together("tests/train/gradients_worker.py", path, processes=2)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_average_to_the_last_bit_and_processes_stay_equal(results, case):
    assert all(results[case]["equal"])
    assert results[case]["same"]


@pytest.mark.parametrize("case", ["sent", "sent frozen"])
def test_every_gradient_travels_once_a_step_and_what_is_frozen_never(results, case):
    assert results[case]["bytes"] == results[case]["used"]
    assert results[case]["buckets"] > 1


def test_what_a_step_leaves_out_stays_whatever_the_number_of_processes(results):
    assert results["moved"] < 1e-5
