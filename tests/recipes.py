"""The commands of the README and of the methods' page, as a test runs them: only paths, processes and sizes differ."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
METHODS = README.parent / "methods" / "README.md"


def commands(kind: str) -> list[str]:
    """Their commands of one kind: "training", "evaluation" or "prediction", word for word."""
    text = README.read_text() + METHODS.read_text()
    lines = re.findall(r"^(?:torchrun|python) .*train_adn\.py .*<.*$", text, flags=re.MULTILINE)
    return [line for line in lines if _kind(line) == kind]


def _kind(command: str) -> str:
    if "--test-only" in command:
        return "evaluation"
    return "prediction" if "--predict" in command else "training"


def arguments(command: str, paths: Mapping[str, str | Path]) -> list[str]:
    """What follows train_adn.py, with each `<placeholder>` replaced by the path that its words contain the key of."""

    def path(match: re.Match[str]) -> str:
        (key,) = [key for key in paths if key in match[1]]
        return shlex.quote(str(paths[key]))

    return shlex.split(re.sub(r"<([^>]*)>", path, command.split("train_adn.py", 1)[1]))
