"""Files that are there whole or not at all, and what the file system refuses said in one line."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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
