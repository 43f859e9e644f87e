"""A server that answers as many vectors as it is sent texts, from bytes made once for each count.

    python -m benchmarks.client.no_cost '{"dim": 768, "tokens": 27, "pace": 0.0, "lines": 256}'

prints its URL as JSON. It reads of a request only what it needs, and runs on uvloop if that is
installed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import cache
from typing import Any

import orjson

from benchmarks.client import bodies


class Server:
    """Answers by path. tokens: counted per text. pace: seconds between two of the `lines`."""

    def __init__(self, dim: int, tokens: int, pace: float, lines: int) -> None:
        self.pace = pace
        self.lines = [b"%x\r\n%s\r\n" % (len(line), line) for line in bodies.chat_lines(lines)]
        self.fixed = {path: answer(body) for path, body in bodies.fixed().items()}
        self.native = cache(lambda count: answer(bodies.native(count, dim, tokens)))
        self.base64 = cache(lambda count: answer(bodies.openai(count, dim, tokens)))
        self.numbers = cache(
            lambda count: answer(bodies.openai(count, dim, tokens, is_base64=False))
        )

    def answer(self, path: str, body: bytes) -> bytes:
        if path in self.fixed:
            return self.fixed[path]
        if path not in ("/api/embed", "/v1/embeddings"):
            return answer(b"404 page not found", "404 Not Found")
        request = orjson.loads(body)
        texts = request["input"]
        count = 1 if isinstance(texts, str) else len(texts)
        if path == "/api/embed":
            return self.native(count)
        if request.get("encoding_format") == "base64":
            return self.base64(count)
        return self.numbers(count)


class Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._data = bytearray()
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
            head = bytes(self._data[:end])
            body_end = end + 4 + _content_length(head)
            if len(self._data) < body_end:
                return
            body = bytes(self._data[end + 4 : body_end])
            del self._data[:body_end]
            path = head.split(b" ", 2)[1].decode()
            if path == "/api/chat":
                self._stream = asyncio.create_task(self._send_lines())
            else:
                self._transport.write(self._server.answer(path, body))

    async def _send_lines(self) -> None:
        first, *others = self._server.lines
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
        self._transport.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + first)
        for line in others:
            await asyncio.sleep(self._server.pace)
            self._transport.write(line)
        self._transport.write(b"0\r\n\r\n")


def answer(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def _content_length(head: bytes) -> int:
    low = head.lower()
    at = low.find(b"content-length:")
    return int(low[at + 15 :].split(b"\r", 1)[0]) if at >= 0 else 0


async def serve(dim: int, tokens: int, pace: float, lines: int) -> None:
    server = Server(dim, tokens, pace, lines)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    print(json.dumps(f"http://127.0.0.1:{port}"), flush=True)
    await listener.serve_forever()


def main() -> None:
    factory = None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        pass
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(**json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
