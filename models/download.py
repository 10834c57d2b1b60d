"""One file of weights from the network: whole under its name, or not there at all.

The bytes go to `NAME.partial`, which a later attempt continues; only a file that passed every check gets its name. One
process of a machine fetches while the others wait for it, under torchrun or without. Any refusal is a WeightsError that
names the address to open by hand and the place to put the file.
"""

import contextlib
import hashlib
import http.client
import json
import logging
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .weights import WeightsError, archive_damage

log = logging.getLogger(__name__)

CHUNK = 1 << 18
ATTEMPTS = 4  # in a row without a single new byte
DROPPED = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers of a server after which it may be asked again


@dataclass
class Remote:
    """A file to fetch: where from, where to, and what is known of it."""

    url: str
    target: Path
    page: str  # what a person opens to fetch it by hand
    size: int | None = None
    sha256: str | None = None  # or its beginning
    progress: bool = True  # show a bar, on a terminal
    timeout: float = 30.0  # seconds without a byte
    pause: float = 1.0  # seconds before the second attempt, more before later ones

    def __post_init__(self) -> None:
        self.partial = self.target.with_name(self.target.name + ".partial")
        self.note = self.target.with_name(self.target.name + ".partial.json")  # what the server said when it was begun

    def arrived(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def forget_partial(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def refuse(self, reason: object) -> WeightsError:
        return WeightsError(
            f"cannot fetch {self.target.name}: {reason}; open {self.page} and save the file as {self.target}, "
            "or name a mirror with --weights-url or a folder with --weights-dir"
        )


def download(remote: Remote) -> Path:
    """Fetch the file unless it is there already; `remote.target`."""
    try:
        with _one_at_a_time(remote.target):
            if not remote.target.exists():
                _fetch(remote)
    except OSError as error:
        raise remote.refuse(f"{error.filename or remote.partial}: {error.strerror or error}") from error
    return remote.target


@contextlib.contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Of a machine's processes, one at a time may look for a file and make it. A lock goes with its process."""
    if target.exists() or sys.platform == "win32":  # which has no such lock: each process fetches for itself
        yield
        return
    import fcntl

    log.info("fetching %s, unless another process does: then waiting for it", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(target.name + ".lock"), "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def defect(path: Path, size: int | None = None, sha256: str | None = None) -> str | None:
    """Why this cannot be the file of weights that is wanted; None where it can."""
    with open(path, "rb") as file:
        head = file.read(512)
        digest = hashlib.sha256(head)
        while sha256 and (chunk := file.read(CHUNK)):
            digest.update(chunk)
    if not head:
        return "is empty"
    if head.lstrip().startswith(b"<"):
        return "is a web page, not a file of weights"
    if not head.startswith((b"PK", b"\x80")):
        return "is not a file that torch.save wrote"
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "is cut off"
    if size not in (None, path.stat().st_size):
        return f"has {path.stat().st_size} bytes, the file should have {size}"
    if not digest.hexdigest().startswith(sha256 or ""):
        return f"is another file: its sha256 is not {sha256}"
    return None


def _fetch(remote: Remote) -> None:
    """Ask until the partial file is complete, then check it and give it its name."""
    if not remote.url.startswith(("http://", "https://")):
        raise remote.refuse(f"{remote.url!r} is no http or https address")
    failures, most = 0, remote.arrived()
    while True:
        try:
            if _transfer(remote):
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            if error.code == 416:  # what is there is no beginning of what the server has now
                remote.forget_partial()
            elif error.code not in PASSING:
                raise remote.refuse(reason) from None
        except (http.client.InvalidURL, ValueError) as error:  # of the address, or of the one that it leads to
            raise remote.refuse(error) from None
        except DROPPED as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            if isinstance(reason, socket.gaierror):
                host = urllib.parse.urlsplit(remote.url).hostname
                raise remote.refuse(f"no connection to {host} ({reason})") from None
        failures, most = (1, remote.arrived()) if remote.arrived() > most else (failures + 1, most)
        if failures >= ATTEMPTS:
            raise remote.refuse(f"{reason}, {ATTEMPTS} times in a row")
        time.sleep(remote.pause * failures)

    what = defect(remote.partial, remote.size, remote.sha256)
    if not what and (damage := archive_damage(remote.partial)):
        what = f"is damaged: {damage}"
    if what:
        remote.forget_partial()
        raise remote.refuse(f"what the server sent {what}")
    with open(remote.partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(remote.partial, remote.target)
    remote.note.unlink(missing_ok=True)


def _transfer(remote: Remote) -> bool:
    """One request, continuing the partial file where the server agrees; True when nothing is missing any more."""
    note = _noted(remote)
    have, total = (remote.arrived(), note["total"]) if note else (0, None)
    if have and have == total:
        return True
    request = urllib.request.Request(remote.url, headers={"User-Agent": "adaptive-depth"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", note["validator"])
    with urllib.request.urlopen(request, timeout=remote.timeout) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise remote.refuse("the server sent a web page instead of the file")
        if answer.status != 206:
            length = answer.headers.get("Content-Length", "")
            have, total = 0, int(length) if length.isdecimal() else None
        elif not have or answer.headers.get("Content-Range") != f"bytes {have}-{total - 1}/{total}":
            remote.forget_partial()
            return False
        if None not in (remote.size, total) and total != remote.size:
            raise remote.refuse(f"the server has {total} bytes, the file should have {remote.size}")
        if not have:  # note what tells this version of the file from another; for If-Range a weak ETag does not
            remote.forget_partial()
            etag = answer.headers.get("ETag", "")
            validator = etag if etag.startswith('"') else answer.headers.get("Last-Modified")
            remote.note.write_text(json.dumps({"url": remote.url, "validator": validator, "total": total}))
        hidden = None if remote.progress else True  # None: shown on a terminal alone
        bar = tqdm(desc=remote.target.name, total=total, initial=have, unit="B", unit_scale=True, disable=hidden)
        with open(remote.partial, "ab") as out, bar:
            while chunk := answer.read1(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
    return total in (None, remote.arrived())


def _noted(remote: Remote) -> dict[str, Any] | None:
    """What the server said of the partial file's version; None if a part of another could not be told from it."""
    try:
        note = json.loads(remote.note.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return note if note["url"] == remote.url and note["total"] and note["validator"] else None
