"""A server on the loopback that hands out one file and misbehaves in the way that the address names."""

import contextlib
import http.server
import io
import threading
import time
from collections.abc import Iterator

import torch

PAGE = b"<!DOCTYPE html><html><title>Quota exceeded</title></html>"


def saved(state: dict) -> bytes:
    """A file as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """`/WAY/NAME`: the method `WAY` answers. `server.requests` keeps (way, Range header) of every request."""

    def do_GET(self):
        way = self.path.split("/")[1]
        asked = self.headers.get("Range")
        self.server.requests.append((way, asked))
        self.first = [w for w, _ in self.server.requests].count(way) == 1
        self.start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the other side may give up
            getattr(self, way)()

    def log_message(self, *args):
        pass

    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, until=None, ranges=True, pause=0.0, etag='"one"', step=1 << 14):
        """The file from the byte asked for, up to `until`, in pieces with a pause after each."""
        body = self.server.body
        same = self.headers.get("If-Range") in (None, etag)
        start = self.start if ranges and same else 0
        headers = {"Content_Length": len(body) - start, "Content_Type": "application/octet-stream", "ETag": etag}
        if start:
            self.head(206, Content_Range=self.content_range(body), **headers)
        else:
            self.head(**headers)
        for at in range(start, until or len(body), step):
            self.wfile.write(body[at : min(at + step, until or len(body))])
            time.sleep(pause)

    def content_range(self, body):
        return f"bytes {self.start}-{len(body) - 1}/{len(body)}"

    def good(self):
        self.send()

    def cut(self):
        self.send(until=len(self.server.body) // 2 if self.first else None)

    def cut_without_range(self):
        self.send(until=len(self.server.body) // 2 if self.first else None, ranges=False)

    def always_cut(self):
        self.send(until=1000, ranges=False)

    def cut_then_changed(self):
        if self.first:
            self.send(until=len(self.server.body) // 2, etag='"zero"')
        else:
            self.send()

    def cut_then_416(self):
        if self.first:
            self.send(until=len(self.server.body) // 2)
        elif self.start:
            self.head(416, Content_Range=f"bytes */{len(self.server.body)}", Content_Length=0)
        else:
            self.send()

    def bad_headers(self):
        """Numbers that are none, and no word on which version of the file this is."""
        length, body = "1, 2", self.server.body
        if self.first:
            self.head(Content_Type="application/octet-stream", Content_Length=length, Content_Range="bytes */10")
            self.wfile.write(body[: len(body) // 2])
        elif self.start:
            self.head(416, Content_Range="bytes */10", Content_Length=length)
        else:
            self.head(Content_Length=-3, Content_Type="application/octet-stream")
            self.wfile.write(body)

    def cut_then_strange_part(self):
        if self.start:
            self.head(206, Content_Range="bytes */10", Content_Length=5)
            self.wfile.write(b"sorry")
        else:
            self.cut()

    def cut_without_version(self):
        """The second time it is another file of the same size."""
        body = self.server.body if not self.first else bytes(len(self.server.body))
        self.head(
            206 if self.start else 200, Content_Length=len(body) - self.start, Content_Range=self.content_range(body)
        )
        self.wfile.write(body[self.start :] if not self.first else b"PK" + body[: len(body) // 2])

    def damaged(self):
        body = bytearray(self.server.body)
        body[len(body) // 2 : len(body) // 2 + 16] = bytes(16)
        self.head(Content_Length=len(body), Content_Type="application/octet-stream")
        self.wfile.write(body)

    def cut_without_length(self):
        self.head(Content_Type="application/octet-stream")
        self.wfile.write(self.server.body[: len(self.server.body) // 2])

    def cut_then_page(self):
        if self.first:
            self.send(until=len(self.server.body) // 2)
        else:
            self.page()

    def stall(self):
        self.send(until=len(self.server.body) // 2 if self.first else None)
        if self.first:
            self.server.closing.wait(5)

    def slow(self):
        self.send(pause=0.05)

    def redirect(self):
        self.head(302, Location="/cut/file", Content_Length=0)

    def busy(self):
        if self.first:
            self.head(503, Content_Length=0)
        else:
            self.send()

    def page(self):
        self.head(Content_Type="text/html; charset=utf-8", Content_Length=len(PAGE))
        self.wfile.write(PAGE)

    def hidden_page(self):
        self.head(Content_Type="application/octet-stream", Content_Length=len(PAGE))
        self.wfile.write(PAGE)

    def empty(self):
        self.head(Content_Type="application/octet-stream", Content_Length=0)

    def text(self):
        self.head(Content_Type="application/octet-stream", Content_Length=5)
        self.wfile.write(b"sorry")

    def another_part(self):
        """Content-Range of bytes that nobody asked for."""
        self.head(206, Content_Range="bytes 500-504/1000", Content_Length=5)
        self.wfile.write(b"sorry")

    def missing(self):
        self.send_error(404)

    def forbidden(self):
        self.send_error(403)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, body: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = body
        self.requests: list[tuple[str, str | None]] = []
        self.closing = threading.Event()

    def address(self, way: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{way}"


@contextlib.contextmanager
def serving(body: bytes) -> Iterator[Server]:
    with Server(body) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
