"""A node for what nginx cannot do: streams that come a line at a time, and lists of vectors.

    python -m benchmarks.gateway.upstream PORT

A stream has as many parts as the request's ``num_predict``, and a last line; each is written by
itself, `PACE` seconds after the one before. A list gets one vector for each of its texts.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

import uvloop

from benchmarks.client import bodies
from benchmarks.client.no_cost import Server

PACE = 0.001
DIM = 768
MOST = 1000
"""Parts of the longest stream."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PARTS = re.compile(rb'"num_predict": *(\d+)')
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


class Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._data = b""
        self._transport: Any = None
        self._stream: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._stream is not None:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._data, 0, end)
            body_end = end + 4 + (int(found[1]) if found else 0)
            if len(self._data) < body_end:
                return
            path = self._data.split(b" ", 2)[1].decode()
            body = self._data[end + 4 : body_end]
            self._data = self._data[body_end:]
            if path == "/api/chat":
                wanted = _PARTS.search(body)
                parts = min(MOST, int(wanted[1])) if wanted else MOST
                self._stream = asyncio.create_task(self._send_lines(parts))
            else:
                self._transport.write(self._server.answer(path, body))

    async def _send_lines(self, parts: int) -> None:
        lines = self._server.lines
        self._transport.write(_HEAD)
        for line in (*lines[:parts], lines[-1]):
            self._transport.write(line)
            await asyncio.sleep(PACE)
        self._transport.write(b"0\r\n\r\n")


async def serve(port: int) -> None:
    server = Server(dim=DIM, tokens=bodies.TOKENS_PER_TEXT, pace=PACE, lines=MOST)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", port)
    await listener.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
