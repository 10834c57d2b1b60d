"""What a `skip` is called: "TTFF" skips the second half of the first two of four stages. Pure Python."""

from collections.abc import Sequence

ENDS = {"super": False, "base": True}


def name(skip: Sequence[bool]) -> str:
    """(True, True, False, False) → "TTFF"."""
    return "".join("T" if flag else "F" for flag in skip)


def parse(word: str, stages: int) -> tuple[bool, ...]:
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
