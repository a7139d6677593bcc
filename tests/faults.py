"""A proxy before the S3 server that breaks what passes through it, in the ways networks and services do."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# kind of fault -> what it does to a request
KINDS = ("reset", "truncated", "lost answer", "flipped byte", "wrong etag", "500", "503", "stalled")
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}


class FaultProxy:
    """Forwards HTTP to a server on this machine; `choose` names the fault of each request, or None.

    Attributes:
        port: Where it listens, on the loopback interface.
        faults: How many of each kind were done.
    """

    def __init__(self, server_port: int, choose: Callable[[str, str], str | None], stall_seconds: float = 5.0) -> None:
        """Start the proxy. `choose` is called with the method and the path."""
        self.faults: Counter[str] = Counter()
        self.server_port, self.stall_seconds = server_port, stall_seconds
        self._choose = choose
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fault_of(self, method: str, path: str) -> str | None:
        """Choose and count the fault of a request."""
        with self._lock:
            kind = self._choose(method, path)
            if kind:
                self.faults[kind] += 1
            return kind

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is not news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.proxy.fault_of(self.command, self.path)
        if kind in ("500", "503"):
            self._answer(int(kind), {}, b"<Error><Code>SlowDown</Code></Error>" if kind == "503" else b"")
        elif kind == "stalled":
            time.sleep(self.proxy.stall_seconds)  # the point: a server that is slow
            self._reset()
        else:
            self._broken(kind, *self._forward(body))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # the names that http.server calls

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.server_port, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_HEADERS | {"expect"}:
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_HEADERS}
            return response.status, headers, response.read()
        finally:
            upstream.close()

    def _broken(self, kind: str | None, status: int, headers: dict[str, str], answer: bytes) -> None:
        if kind in ("reset", "truncated") and len(answer) > 1:
            self._answer(status, headers, answer[: len(answer) // 2], len(answer))
        if kind == "truncated" and len(answer) > 1:
            self.close_connection = True
        elif kind in ("reset", "truncated", "lost answer"):
            self._reset()
        elif kind == "flipped byte" and answer:
            middle = len(answer) // 2
            self._answer(status, headers, answer[:middle] + bytes([answer[middle] ^ 1]) + answer[middle + 1 :])
        elif kind == "wrong etag":
            others = {name: value for name, value in headers.items() if name.lower() != "etag"}
            self._answer(status, others | {"ETag": '"0123456789abcdef0123456789abcdef"'}, answer)
        else:
            self._answer(status, headers, answer)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def sometimes(kind: str, share: float, seed: int = 0) -> Callable[[str, str], str | None]:
    """Return a chooser that breaks a share of all requests."""
    chance = random.Random(seed)
    return lambda method, path: kind if chance.random() < share else None


def first(kind: str, count: int, method: str, within: str = "") -> Callable[[str, str], str | None]:
    """Return a chooser that breaks the first `count` requests of a method whose path holds `within`."""
    left = [count]

    def choose(asked: str, path: str) -> str | None:
        if asked == method and within in path and left[0]:
            left[0] -= 1
            return kind
        return None

    return choose
