"""A load of requests over raw sockets, each connection one after another, with exact times."""

from __future__ import annotations

import math
import re
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_PATIENCE = 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_END = b"\r\n0\r\n\r\n"
_LINE_END = b"}\n"


class Answer:
    """One answer, fed as it comes. Bodies have a Content-Length, or are chunked lines of JSON.

    lines: ends of lines of JSON so far. is_begun: whether there was one, or all of it is there;
    began: when that was, for who feeds it to note.
    """

    def __init__(self) -> None:
        self.began = 0.0
        self.status = 0
        self.lines = 0
        self.reads = 0
        self.is_begun = False
        self._head: bytes | None = b""
        self._left: int | None = None
        self._tail = b""

    def feed(self, data: bytes) -> bool:
        """Whether that was its end."""
        self.reads += 1
        if self._head is not None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return False
            self._head = None
            self.status = int(head.split(b" ", 2)[1])
            length = _LENGTH.search(head)
            self._left = int(length[1]) if length else None
            self._tail = b"\r\n"
        self.lines += (self._tail[-1:] + data).count(_LINE_END)
        self._tail = (self._tail + data)[-len(_END) :]
        if self._left is None:
            is_over = self._tail == _END
        else:
            self._left -= len(data)
            is_over = self._left <= 0
        self.is_begun = self.is_begun or self.lines > 0 or is_over
        return is_over


@dataclass(slots=True)
class Load:
    """What came of it. Times are seconds; firsts: until the first line, or the whole answer.

    coming: of all answers together, from the first line to the last byte.
    """

    seconds: float = 0.0
    firsts: list[float] = field(default_factory=list)
    coming: float = 0.0
    lines: int = 0
    reads: int = 0
    failed: int = 0


def closed_loop(
    port: int,
    make: Callable[[int], bytes],
    *,
    connections: int = 1,
    count: int | None = None,
    seconds: float = math.inf,
) -> Load:
    """Ask on so many connections, `count` times in all or for so many seconds.

    make: the request of a number, from 0 on. Raises OSError where a connection breaks, and
    TimeoutError where nothing comes for half a minute.
    """
    load = Load()
    asked = 0
    began = time.perf_counter()
    open_now: dict[socket.socket, tuple[Answer, float]] = {}
    with selectors.DefaultSelector() as selector:

        def ask(connection: socket.socket) -> None:
            nonlocal asked
            now = time.perf_counter()
            if asked == count or now - began >= seconds:
                selector.unregister(connection)
                del open_now[connection]
                connection.close()
                return
            asked += 1
            request = make(asked - 1)
            open_now[connection] = (Answer(), time.perf_counter())
            connection.sendall(request)

        try:
            for _ in range(connections):
                connection = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
                open_now[connection] = (Answer(), began)
                ask(connection)
            while open_now:
                ready = selector.select(_PATIENCE)
                if not ready:
                    raise TimeoutError(f"nothing came for {_PATIENCE:g} s")
                for key, _ in ready:
                    assert isinstance(key.fileobj, socket.socket)
                    if _read(key.fileobj, *open_now[key.fileobj], load):
                        ask(key.fileobj)
        finally:
            for connection in open_now:
                connection.close()
    load.seconds = time.perf_counter() - began
    return load


def _read(connection: socket.socket, answer: Answer, asked_at: float, load: Load) -> bool:
    """Take what has come; whether the answer is over."""
    data = connection.recv(1 << 18)
    if not data:
        raise ConnectionResetError("the server closed a connection in the middle of an answer")
    was_begun = answer.is_begun
    is_over = answer.feed(data)
    if answer.is_begun and not was_begun:
        answer.began = time.perf_counter()
        load.firsts.append(answer.began - asked_at)
    if is_over:
        load.coming += time.perf_counter() - answer.began
        load.lines += answer.lines
        load.reads += answer.reads
        load.failed += answer.status != 200
    return is_over


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of them do not exceed. Raises on none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
