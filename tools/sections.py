"""Sections of a Markdown file that a program fills, between the lines `<!-- NAME:begin -->`, `<!-- NAME:end -->`."""

from pathlib import Path

from utils.errors import UserError
from utils.files import whole_file


def section(path: Path, name: str) -> str:
    """What stands between a section's markers."""
    _, text, _ = _parts(path, name)
    return text.strip()


def put(path: Path, name: str, text: str) -> None:
    """Put a text between a section's markers, whatever stood there."""
    before, _, after = _parts(path, name)
    with whole_file(path) as file:
        file.write(f"{before}\n{text.strip()}\n{after}".encode())


def _parts(path: Path, name: str) -> tuple[str, str, str]:
    text = path.read_text()
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"{path}: has no section {name}, between the lines {begin} and {end}")
    before, rest = text.split(begin)
    inside, after = rest.split(end)
    return before + begin, inside, end + after
