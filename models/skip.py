"""What `--skip-cfg` may say: the words of a command line → one or several sub-networks. Pure Python."""

import itertools
from collections.abc import Sequence

FLAGS = {"True": True, "T": True, "False": False, "F": False}
ACCEPTED = "True False … or T F … (one flag per stage), words like TTFF, super, base, or all"


def parse_skips(words: Sequence[str] | None, num_stages: int) -> list[tuple[bool, ...]]:
    """The sub-networks that `words` name, each once and in their order; the super-net where nothing is said."""
    if not words:
        return [(False,) * num_stages]
    if list(words) == ["all"]:
        return list(itertools.product((False, True), repeat=num_stages))
    if num_stages > 1 and all(word in FLAGS for word in words):
        return [_counted([FLAGS[word] for word in words], words, num_stages)]
    return list(dict.fromkeys(_one(word, words, num_stages) for word in words))


def _one(word: str, words: Sequence[str], num_stages: int) -> tuple[bool, ...]:
    """The sub-network that a single word names."""
    if word in ("super", "base"):
        return (word == "base",) * num_stages
    if word in FLAGS and num_stages == 1:
        return (FLAGS[word],)
    if len(word) < 2 or set(word) - {"T", "F"}:
        raise ValueError(f"{' '.join(words)!r}: {word!r} is not understood here; accepted are {ACCEPTED}")
    return _counted([letter == "T" for letter in word], [word], num_stages)


def _counted(flags: list[bool], words: Sequence[str], num_stages: int) -> tuple[bool, ...]:
    if len(flags) != num_stages:
        raise ValueError(
            f"{' '.join(words)!r} has {len(flags)} flags; the model has {num_stages} skippable stages "
            f"and needs {num_stages} flags, like {'T' * (num_stages // 2) + 'F' * (num_stages - num_stages // 2)}"
        )
    return tuple(flags)
