"""An HTTPS server on the loopback that hands out files, and does each time what its script says."""

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from dicomnode.federation import certificates


@dataclass(frozen=True, kw_only=True)
class Reply:
    """How one request is answered; without anything, as a good server does."""

    status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)  # put over the right ones; None: left out
    cut_after: int | None = None  # bytes of the body, then the line is cut
    body: bytes | None = None
    before: Callable[[], None] = lambda: None  # done before the answer, such as changing the file


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that go away are what these tests are about."""


class FileServer:
    """Serves ``files`` by path with ETag and ranges; ``script`` is used up one reply a request."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.script: list[Reply] = []
        self.asked: list[dict[str, str]] = []  # headers of each request, with its path under "path"
        self.sent_bytes = 0  # of bodies
        made = certificates.ensure(
            folder, hostnames=["localhost"], organisation="test", now=datetime.now(UTC)
        )
        self.ca_file = made.ca_file
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.certificate_file, made.key_file)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"https://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, path: str, content: bytes, *, tag: str = '"v1"') -> None:
        """Put a file there, or another in its place."""
        self.files[path], self.tags[path] = content, tag


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            asked = {name.lower(): text for name, text in self.headers.items()}
            server.asked.append({**asked, "path": self.path})
            reply = server.script.pop(0) if server.script else Reply()
            reply.before()
            status, headers, body = _right_answer(server, self.path.partition("?")[0], asked)
            if reply.body is not None:
                body, headers = reply.body, {**headers, "Content-Length": str(len(reply.body))}
            self.send_response(reply.status or status)
            for name, text in {**headers, **reply.headers}.items():
                if text is not None:
                    self.send_header(name, text)
            self.end_headers()
            self.close_connection = reply.cut_after is not None
            server.sent_bytes += self.wfile.write(body[: reply.cut_after])

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    return Handler


def _right_answer(
    server: FileServer, path: str, asked: dict[str, str]
) -> tuple[int, dict[str, str | None], bytes]:
    if path not in server.files:
        return 404, {"Content-Length": "0"}, b""
    content, tag = server.files[path], server.tags[path]
    if "range" not in asked or asked.get("if-range", tag) != tag:
        return 200, {"ETag": tag, "Content-Length": str(len(content))}, content
    start = int(asked["range"].removeprefix("bytes=").removesuffix("-"))
    if start >= len(content):
        return 416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}, b""
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    rest = content[start:]
    return 206, {"ETag": tag, "Content-Range": span, "Content-Length": str(len(rest))}, rest
