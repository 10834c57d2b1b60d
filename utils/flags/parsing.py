"""Reading flags: types that check, one-line errors, guesses at what a misspelt one meant. Imports no torch."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

OF_ONE_CALL = ("resume", "change_settings", "start_epoch", "from_run", "output_dir", "device", "workers", "prefetch")
OF_ONE_CALL += ("download_dir", "world_size", "dist_url")

# Arguments and every flag's default → what cannot be, in one line
Check = Callable[[argparse.Namespace, dict[str, object]], str | None]
Needs = tuple[tuple[str, bool, str], ...]  # flags, whether they have an effect, what they need for it in words


class Formatter(argparse.HelpFormatter):
    """Adds each flag's default to its help text; a whole number is shown as N."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, "", argparse.SUPPRESS) and not isinstance(action.default, bool)
        return action.help + (" (default: %(default)s)" if shown and "(default" not in action.help else "")

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "N" if action.type in (COUNT, NATURAL) else super()._get_default_metavar_for_optional(action)


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, once for all processes of a run, and guesses what a misspelt flag meant."""

    def __init__(self, prog: str, description: str, check: Check) -> None:
        formatter = partial(Formatter, max_help_position=32, width=118)
        super().__init__(prog, description=description, formatter_class=formatter, allow_abbrev=False)
        self.check = check

    def error(self, message: str) -> NoReturn:
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            sys.stderr.write(f"{self.prog}: error: {message}\n")
        sys.exit(2)

    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        args, unknown = self.parse_known_args(argv)
        if args.from_run:
            self.set_defaults(**self.settings_of(Path(args.from_run)))
            args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            guess = closest(unknown[0].split("=")[0], flags)
            self.error(f"unknown argument {unknown[0]}{guess} (--help lists them all)")
        problem = self.check(args, {action.dest: action.default for action in self._actions})
        if problem:
            self.error(problem)
        return args

    def settings_of(self, path: Path) -> dict[str, object]:
        """The arguments in a run.json, but for those that belong to one call and its machine."""
        try:
            found = json.loads(path.read_bytes())["args"]
            settings = {name: value for name, value in found.items() if name not in OF_ONE_CALL}
        except OSError as error:
            self.error(f"--from-run {path}: {error.strerror}")
        except (ValueError, TypeError, KeyError, AttributeError):
            self.error(f"--from-run {path}: not a run.json that a training wrote")
        known = {action.dest: action for action in self._actions}
        for name, value in settings.items():
            without_flag = (name, value) in self._defaults.items()  # what this command leaves as it is
            if not without_flag and (name not in known or not _could_be_given(known[name], value)):
                self.error(f"--from-run {path}: it has {name} {value!r}, which this version does not know")
        return settings


def _could_be_given(action: argparse.Action, value: object) -> bool:
    """Whether the flag could have got this value."""
    if value is None or value == action.default:
        return True
    if action.nargs == 0:
        return isinstance(value, bool)
    if isinstance(value, list) != (action.nargs is not None):
        return False
    words = list(map(str, value)) if isinstance(value, list) else [str(value)]
    try:
        read = [action.type(word) if action.type else word for word in words]
    except (argparse.ArgumentTypeError, ValueError):
        return False
    return action.nargs in (None, "+", len(words)) and not set(read) - set(action.choices or read)


def closest(word: str, known: Sequence[str]) -> str:
    """`: did you mean …?`, or nothing where nothing is near."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f": did you mean {' or '.join(near)}?" if near else ""


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """A flag's type: one of these words, in any case."""

    def convert(text: str) -> str:
        if text.lower() not in known:
            guess = closest(text.lower(), known)
            raise argparse.ArgumentTypeError(f"unknown {text!r}{guess} (known: {', '.join(known)})")
        return text.lower()

    return convert


def bounded(kind: type, low: float, high: float = float("inf"), open_low: bool = False) -> Callable[[str], float]:
    """A flag's type: a number between two bounds; with `open_low` the lower one itself is too small."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            wanted = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {wanted}, not {text!r}") from None
        if not low <= value <= high or (open_low and value == low):
            least = f"more than {low}" if open_low else f"at least {low}"
            most = "" if high == float("inf") else f" and at most {high}"
            raise argparse.ArgumentTypeError(f"expected {least}{most}, not {text}")
        return value

    return convert


COUNT = bounded(int, 1)
NATURAL = bounded(int, 0)
POSITIVE = bounded(float, 0, open_low=True)
NONNEGATIVE = bounded(float, 0)
FRACTION = bounded(float, 0, 1)
