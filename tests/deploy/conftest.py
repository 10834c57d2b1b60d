"""A device's commands run with as many threads as they are told; what comes after them, with as many as before."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
