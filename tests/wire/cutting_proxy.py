"""A TCP proxy that cuts its first connection after so many bytes: a broken line, on demand."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_READ = 64 * 1024


class CuttingProxy:
    """Forwards to a port of the loopback interface; counts what it forwarded each way."""

    def __init__(self, port: int, *, cut_up: int | None = None, cut_down: int | None = None) -> None:
        self._target = port
        self._limits = [cut_up, cut_down]
        self.carried = [0, 0]  # bytes to, and from, the server, over all connections
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for way, (source, sink) in enumerate(((near, far), (far, near))):
                    threading.Thread(target=self._pump, args=(source, sink, way), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: int) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(_READ):
                limit = self._limits[way]
                if limit is not None and self.carried[way] + len(data) > limit:
                    sink.sendall(data[: limit - self.carried[way]])
                    self.carried[way], self._limits[way] = limit, None
                    break
                self.carried[way] += len(data)
                sink.sendall(data)
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
