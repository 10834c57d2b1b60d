"""One file of weights from the network: whole under its name, or not there at all.

The bytes go to `NAME.partial`, which a later attempt continues; only a file that passed every check gets its name. A
file lock makes one process of a machine fetch while the others wait for it, under torchrun or without. Any refusal is a
WeightsError that names the address to open by hand and the place to put the file.
"""

import contextlib
import hashlib
import http.client
import json
import logging
import os
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .weights import WeightsError

log = logging.getLogger(__name__)

CHUNK = 1 << 18
ATTEMPTS = 4  # in a row without a single new byte
DROPPED = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers of a server that may think again


@dataclass(frozen=True)
class Remote:
    """A file to fetch: where from, where to, and what is known of it."""

    url: str
    target: Path
    page: str  # what a person opens to fetch it by hand
    size: int | None = None
    sha256: str | None = None
    timeout: float = 30.0  # seconds without a byte
    pause: float = 1.0  # seconds before the second attempt, more before later ones

    @property
    def partial(self) -> Path:
        return self.target.with_name(self.target.name + ".partial")

    @property
    def note(self) -> Path:
        """What the server said of the file when the partial one was begun."""
        return self.target.with_name(self.target.name + ".partial.json")

    def refuse(self, reason: object) -> WeightsError:
        return WeightsError(
            f"cannot fetch {self.target.name}: {reason}; open {self.page} and save the file as {self.target}, "
            "or name a mirror with --weights-url or a folder with --weights-dir"
        )


def download(remote: Remote) -> Path:
    """Fetch the file unless it is there already; `remote.target`."""
    if not remote.target.exists():
        if not remote.url.startswith(("http://", "https://")):
            raise remote.refuse(f"{remote.url!r} is no http or https address")
        try:
            remote.target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(remote.target):
                if not remote.target.exists():
                    _fetch(remote)
        except OSError as error:
            raise remote.refuse(f"{error.filename or remote.partial}: {error.strerror or error}") from error
    return remote.target


def check_kind(path: Path) -> None:
    """A WeightsError if the file cannot be a checkpoint at all: empty, a web page, cut off."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise WeightsError(f"{path} is empty")
    if head.lstrip().startswith(b"<"):
        raise WeightsError(f"{path} is a web page, not a file of weights")
    if not head.startswith((b"PK", b"\x80")):
        raise WeightsError(f"{path} is not a file that torch.save wrote")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is cut off")


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its process, however that ends."""
    import fcntl  # not on Windows, where the rest of the zoo still works

    with open(target.with_name(target.name + ".lock"), "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that fetches %s", target)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch(remote: Remote) -> None:
    """Ask until the partial file is complete, then check it and give it its name."""
    failures, most = 0, _size(remote.partial)
    while True:
        try:
            if _transfer(remote):
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            if error.code == 416:  # what is there is no beginning of what the server has now
                _drop(remote)
            elif error.code not in PASSING:
                raise remote.refuse(reason) from error
        except DROPPED as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            if isinstance(reason, socket.gaierror):
                raise remote.refuse(
                    f"no connection to {urllib.parse.urlsplit(remote.url).hostname} ({reason})"
                ) from error
        size = _size(remote.partial)
        failures, most = (1, size) if size > most else (failures + 1, most)
        if failures >= ATTEMPTS:
            raise remote.refuse(f"{reason}, {ATTEMPTS} times in a row")
        time.sleep(remote.pause * failures)
    _finish(remote)


def _transfer(remote: Remote) -> bool:
    """One request, continuing the partial file where the server agrees; True when nothing is missing any more."""
    have, note = _begun(remote)
    if have and have == note["total"]:
        return True
    headers = {"User-Agent": "adaptive-depth", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if note["validator"]:
            headers["If-Range"] = note["validator"]
    with urllib.request.urlopen(urllib.request.Request(remote.url, headers=headers), timeout=remote.timeout) as answer:
        start, total = _offer(remote, answer)
        if start and (start != have or total != note["total"]):
            _drop(remote)
            return False
        if not start:
            _begin(remote, answer, total)
        with (
            open(remote.partial, "ab" if start else "wb") as out,
            tqdm(desc=remote.target.name, total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := answer.read1(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(remote.partial) == total


def _offer(remote: Remote, answer: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte and whole size of what the server is about to send; refuses a web page and a wrong size."""
    if answer.headers.get_content_type() == "text/html":
        raise remote.refuse("the server sent a web page instead of the file")
    length = answer.headers.get("Content-Length")
    start, total = 0, int(length) if length else None
    if answer.status == 206:
        span, _, whole = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        start, total = int(span.split("-")[0] or 0), int(whole) if whole.isdigit() else None
    if remote.size is not None and total is not None and total != remote.size:
        raise remote.refuse(f"the server has {total} bytes, the file should have {remote.size}")
    return start, total


def _begun(remote: Remote) -> tuple[int, dict]:
    """Size of the partial file and what was noted of it; (0, {}) when it is of another address or unknown."""
    try:
        note = json.loads(remote.note.read_text())
    except (FileNotFoundError, ValueError):
        note = {}
    if note.get("url") != remote.url:
        _drop(remote)
        return 0, {}
    return _size(remote.partial), note


def _begin(remote: Remote, answer: http.client.HTTPResponse, total: int | None) -> None:
    """Start anew: note what tells this version of the file from another, for If-Range (a weak ETag would not do)."""
    _drop(remote)
    etag = answer.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else answer.headers.get("Last-Modified")
    remote.note.write_text(json.dumps({"url": remote.url, "validator": validator, "total": total}))


def _finish(remote: Remote) -> None:
    """Check the complete file; give it its name, or remove it."""
    reason = None
    size = _size(remote.partial)
    try:
        check_kind(remote.partial)
    except WeightsError as error:
        reason = str(error).replace(str(remote.partial), "what the server sent")
    if reason is None and remote.size not in (None, size):
        reason = f"{size} bytes came, the file should have {remote.size}"
    if reason is None and remote.sha256 is not None and _sha256(remote.partial) != remote.sha256:
        reason = f"its sha256 is not {remote.sha256}"
    if reason is not None:
        _drop(remote)
        raise remote.refuse(reason)
    with open(remote.partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(remote.partial, remote.target)
    remote.note.unlink(missing_ok=True)


def _drop(remote: Remote) -> None:
    remote.partial.unlink(missing_ok=True)
    remote.note.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
