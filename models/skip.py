"""What a `skip` is: a bool per stage, True skips the stage's second half; in a word, "TTFF". Pure Python."""

import itertools
from collections.abc import Sequence

Skip = tuple[bool, ...]
ENDS = {"super": False, "base": True}


def name(skip: Sequence[bool]) -> str:
    """(True, True, False, False) → "TTFF"."""
    return "".join("T" if flag else "F" for flag in skip)


def parse(word: str, stages: int) -> Skip:
    """The inverse of `name`; also `super` and `base`. A ValueError says what is wrong with the word."""
    if word in ENDS:
        return (ENDS[word],) * stages
    if not word or set(word) - {"T", "F"}:
        raise ValueError(
            f"{word!r} is not understood here; accepted are True False … or T F … (one flag per stage), words like "
            "TTFF, super, base, or all"
        )
    if len(word) != stages:
        example = "T" * (stages // 2) + "F" * (stages - stages // 2)
        raise ValueError(
            f"{word!r} has {len(word)} flags; the model has {stages} skippable stages and needs {stages} flags, "
            f"like {example}"
        )
    return tuple(letter == "T" for letter in word)


def prefixes(skip: Skip) -> list[Skip]:
    """Of what a sub-network runs: before the stages, in each, and behind them, where the last flag holds again."""
    return [(*skip, skip[-1])[:length] for length in range(len(skip) + 2)]


class ByStage:
    """Of the contract of many networks, what follows from their being named by a `skip`: all 2^N of them."""

    num_skippable_stages: int

    @property
    def super_net(self) -> Skip:
        return (False,) * self.num_skippable_stages

    @property
    def base_net(self) -> Skip:
        return (True,) * self.num_skippable_stages

    @property
    def subnets(self) -> list[Skip]:
        """From the super-net to the base-net."""
        return list(itertools.product((False, True), repeat=self.num_skippable_stages))

    def name(self, skip: Sequence[bool]) -> str:
        return name(skip)

    def parse(self, word: str) -> Skip:
        return parse(word, self.num_skippable_stages)

    def checked(self, skip: Sequence[bool] | None) -> Skip:
        """`skip` as a tuple, or a ValueError that says what was expected."""
        if skip is None:
            return self.super_net
        stages, is_list = self.num_skippable_stages, isinstance(skip, (tuple, list))
        if not is_list or len(skip) != stages or not all(isinstance(flag, bool) for flag in skip):
            raise ValueError(
                f"skip must be a tuple or list of {stages} bools, one per stage (True skips its second half), "
                f"like {self.base_net} for the base-net; got {skip!r}"
            )
        return tuple(skip)
