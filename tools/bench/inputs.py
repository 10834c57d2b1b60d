"""From JPEG files to tensors on one core; `tools.input_speed` measures, here it becomes groups of the benchmark."""

import tempfile
from pathlib import Path

import torch

from tools import input_speed
from tools.bench.results import Group
from utils.evaluate.timing import Effort

TITLE = "input"


def measure(images: int, effort: Effort) -> list[Group]:
    """Images per second of each chain, case by case."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rounds = max(effort.at_least, min(effort.at_most, 9))
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = input_speed.photographs(Path(folder), images)
            return [
                Group("input", TITLE, case, images, input_speed.measure(case, paths, rounds), unit="images/s/core")
                for case in input_speed.CASES
            ]
    finally:
        torch.set_num_threads(threads)
