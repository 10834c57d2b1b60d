"""What `--skip-cfg` accepts, and what it says of everything else."""

import pytest

from models.skip import parse_skips

T, F = True, False


@pytest.mark.parametrize("words", ["True True False True", "T T F T", "TTFT", "True T F T"])
def test_one_sub_network_in_each_of_its_spellings(words):
    assert parse_skips(words.split(), 4) == [(T, T, F, T)]


def test_several_words_are_several_sub_networks_each_once():
    assert parse_skips(["TTFF", "super", "base", "FFFF"], 4) == [(T, T, F, F), (F, F, F, F), (T, T, T, T)]


@pytest.mark.parametrize("stages", [1, 4, 5])
def test_all_is_every_sub_network_once(stages):
    found = parse_skips(["all"], stages)
    assert len(found) == len(set(found)) == 2**stages
    assert all(len(skip) == stages for skip in found)
    assert found[0] == (F,) * stages
    assert found[-1] == (T,) * stages


@pytest.mark.parametrize("words", [None, [], ["super"]])
def test_without_a_word_it_is_the_super_net(words):
    assert parse_skips(words, 3) == [(F, F, F)]


def test_a_model_of_one_stage():
    assert parse_skips(["T"], 1) == parse_skips(["base"], 1) == [(T,)]
    assert parse_skips(["T", "F"], 1) == [(T,), (F,)]


@pytest.mark.parametrize(
    "words",
    [
        *(["true", "false", "true", "false"], ["ttff"], ["1", "0", "1", "0"], ["TTXF"], ["True,True"], [""]),
        *(["ALL"], ["all", "TTFF"], ["T", "T", "F", "TTFF"], ["TrueFalse"], ["None"]),
    ],
)
def test_anything_else_is_an_error_that_says_what_is_accepted(words):
    with pytest.raises(ValueError, match=r"accepted are True False … or T F …"):
        parse_skips(words, 4)


@pytest.mark.parametrize(("words", "count"), [(["TTF"], 3), (["T"] * 5, 5), (["True"], 1), (["FFFF", "FFFFF"], 5)])
def test_a_wrong_count_says_how_many_stages_the_model_has(words, count):
    with pytest.raises(ValueError, match=rf"has {count} flags; the model has 4 skippable stages"):
        parse_skips(words, 4)
