"""What the measuring commands share: arguments in, text out, a mistake in one line; and how they draw."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import whole_file

log = logging.getLogger(__name__)


def command(name: str, about: str, flags: Callable, run: Callable, argv: Sequence[str] | None = None) -> int:
    """Prints what `run` makes of the arguments that `flags` adds to a parser, and of those that are another's."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m {name}", description=about, formatter_class=form, allow_abbrev=False)
    flags(parser)
    try:
        sys.stdout.write(run(*parser.parse_known_args(argv)) + "\n")
    except UserError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        return 2
    return 0


def new_figure(path: Path, width: float, height: float) -> Any | None:
    """None, after a warning, where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("%s was not drawn: matplotlib is missing (pip install matplotlib)", path.name)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
