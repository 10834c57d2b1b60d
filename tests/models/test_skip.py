"""What a sub-network is called, and what is said of every other word."""

import itertools

import pytest

from models.skip import name, parse

T, F = True, False


@pytest.mark.parametrize("stages", [1, 4, 5])
def test_a_name_is_understood_again(stages):
    for skip in itertools.product((F, T), repeat=stages):
        assert parse(name(skip), stages) == skip


def test_the_ends_have_names_of_their_own():
    assert parse("super", 3) == (F, F, F)
    assert parse("base", 1) == (T,)


@pytest.mark.parametrize("word", ["true", "ttff", "1010", "TTXF", "True,True", "", "ALL", "TrueFalse", "None"])
def test_anything_else_is_an_error_that_says_what_is_accepted(word):
    with pytest.raises(ValueError, match=r"accepted are True False … or T F …"):
        parse(word, 4)


@pytest.mark.parametrize(("word", "count"), [("TTF", 3), ("TTTTT", 5), ("T", 1)])
def test_a_wrong_count_says_how_many_stages_the_model_has(word, count):
    with pytest.raises(ValueError, match=rf"has {count} flags; the model has 4 skippable stages"):
        parse(word, 4)
