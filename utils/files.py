"""Files that are there whole or not at all, and what the file system refuses said in one line."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import UserError


@contextlib.contextmanager
def as_user_error(path: Path, problem: str) -> Iterator[None]:
    """The file system's refusals within the block become a UserError about `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {problem} ({error.strerror or error})") from error


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` only at the end; an older one stays if anything goes wrong."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with as_user_error(path, "cannot be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def link_or_copy(path: Path, other: Path) -> None:
    """`other` becomes a second name of the file `path`, or where the file system has no links, a copy of it."""
    temporary = other.with_name(f".{other.name}.tmp")
    try:
        with as_user_error(other, f"cannot be written; {path} is whole"):
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
            os.replace(temporary, other)
    finally:  # it is still there after an error, and where both were one file already
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """What JSON has no type for is written as its text; a list of numbers stands in one line."""
    text = json.dumps(content, indent=2, default=str)
    text = re.sub(r'\[\n\s+([^][{}"]+?)\n\s+]', lambda found: f"[{' '.join(found[1].split())}]", text)
    with whole_file(path) as file:
        file.write(text.encode() + b"\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    with whole_file(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))  # names of folders may be any bytes
