"""What the measuring commands share: arguments in, text out, a mistake in one line."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from utils.errors import UserError


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
