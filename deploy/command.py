"""What the commands beside the core share: arguments in, text out, a mistake in one line."""

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
    return exit_code(name, lambda: run(*parser.parse_known_args(argv)))


def exit_code(name: str, run: Callable[[], str | None], *mistakes: type[Exception]) -> int:
    """Prints what `run` has to say: 0. A UserError, or another of these mistakes, is one line: 2."""
    try:
        if (text := run()) is not None:
            sys.stdout.write(f"{text}\n")
    except (UserError, *mistakes) as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        return 2
    return 0
