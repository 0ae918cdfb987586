"""A proxy before an object store that does what networks and busy stores do, when and how often it is told to."""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

Kind = Literal["slow_down", "reset", "truncate", "slow", "lost_answer", "down"]

_SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
_SLOW_SECONDS = 0.3


@dataclass
class Fault:
    """What goes wrong with requests that match: `times` of them, each with this chance.

    slow_down: 503 without asking the store. reset: the connection is reset without asking the store. truncate: half of
    the answer's body. slow: the answer comes in pieces. lost_answer: the store did it, the answer never comes. down:
    as reset, for the whole store.
    """

    kind: Kind
    method: str = "GET|PUT|POST|DELETE|HEAD"
    path: str = ""
    times: float = float("inf")
    chance: float = 1.0


@dataclass
class Proxy:
    """Forwards from a loopback port of its own to `upstream`. Faults may be added and removed at any time.

    `done` counts the faults that happened, by kind, `asked` the requests, as "GET /bucket/key", `sent` the bytes of
    their answers' bodies.
    """

    upstream: str
    seed: int = 0
    faults: list[Fault] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Proxy:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """The address that clients use."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, method: str, path: str, size: int) -> None:
        """An answer of so many bytes goes out."""
        with self._lock:
            self.sent[f"{method} {path.partition('?')[0]}"] += size

    def choose(self, method: str, path: str) -> Kind | None:
        """What goes wrong with this request, if anything."""
        with self._lock:
            self.asked[f"{method} {path.partition('?')[0]}"] += 1
            for fault in self.faults:
                matches = re.fullmatch(fault.method, method) and re.search(fault.path, path)
                if matches and fault.times >= 1 and self._random.random() < fault.chance:
                    fault.times -= 1
                    self.done[fault.kind] += 1
                    return fault.kind
        return None


class _Handler(BaseHTTPRequestHandler):
    """One client connection."""

    owner: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class calls it so
        """Say nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.owner.choose(self.command, self.path)
        if kind in ("reset", "down"):
            self._reset()
            return
        if kind == "slow_down":
            self._answer(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
            return
        status, headers, answer = self._ask(body)
        if kind == "lost_answer":
            self._reset()
            return
        self._answer(status, headers, answer, kind)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815  # the base class looks for these names

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        where = urlsplit(self.owner.upstream)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        try:
            # The Host header stays what the client signed.
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            hop = {"transfer-encoding", "connection", "keep-alive"}
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in hop}
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, kind: Kind | None = None) -> None:
        self.send_response_only(status)
        if self.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.owner.count(self.command, self.path, len(body))
        if kind == "truncate" and body:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self._reset()
            return
        if kind == "slow":
            middle = len(body) // 2
            self.wfile.write(body[:middle])
            self.wfile.flush()
            time.sleep(_SLOW_SECONDS)
            body = body[middle:]
        self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
