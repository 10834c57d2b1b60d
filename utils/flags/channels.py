"""Lists of channels on the command line: from files of the search that finds them, or spelled out. No torch here."""

import argparse
import json
from pathlib import Path


def channel_lists(text: str) -> tuple[tuple[int, ...], ...]:
    """A flag's type: the lists in a file, the smallest first, or one list as JSON."""
    try:
        if text.startswith("["):
            return (tuple(map(int, json.loads(text))),)
        lists = sorted(json.loads(Path(text).read_bytes())["lists"], key=lambda found: found["gmacs"])
        return tuple(dict.fromkeys(tuple(map(int, found["channels"])) for found in lists))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        wanted = "neither a file that `python -m tools.slim` wrote nor a list such as [8,16]"
        raise argparse.ArgumentTypeError(f"{text:.80}: {wanted}") from None


class Flat(argparse.Action):
    """Several words of several lists each are one list of lists."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values, option=None) -> None:
        setattr(namespace, self.dest, [list(row) for rows in values for row in rows])
