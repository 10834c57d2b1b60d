"""The page of timm's networks: which of a file's are looked at, and what it says of one that is not tried."""

import pytest

from tools.timm_table import row_of, sounds_like


def test_what_sounds_small_comes_first() -> None:
    names = ["net_base", "net_34", "net_18", "test_net", "net_tiny_224", "net_xxs24"]
    assert sorted(names, key=sounds_like) == ["net_xxs24", "net_tiny_224", "net_base", "net_18", "net_34", "test_net"]


def test_the_row_of_a_file_says_why_it_is_not_tried() -> None:
    pytest.importorskip("timm")
    accepted, row = row_of("starnet", most=0.001)
    assert not accepted
    assert row == "| starnet | `timm:starnet_s1` | not tried: 3 M parameters |\n"
