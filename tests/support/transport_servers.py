"""Servers over real sockets, and transports connected to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiosollol.core.node import NodeSpec
from aiosollol.net.transport import HttpTransport
from aiosollol.wire.ollama.client import dump

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def connected(url: str, **fields: object) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(NodeSpec(url, name="node", **fields))  # type: ignore[arg-type]
    try:
        yield transport
    finally:
        await transport.aclose()


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[str]:
    """Serve each connection with `handle`. Yields the URL."""
    tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        tasks[task] = writer
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await turns()  # for connections accepted just now
        for task, writer in tasks.items():
            task.cancel()
            await asyncio.wait([task])
            writer.transport.abort()
        await turns()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def raw_server(answer: bytes, *, hang: bool = False) -> AsyncIterator[str]:
    """A server that reads the head of a request and always sends `answer`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if hang:
            await reader.read()

    async with serving(handle) as url:
        yield url


def http(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


EMBED = dump({"model": "nomic-embed-text", "input": ["hello"]})


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers {} to every request. Yields its URL and the requests it received."""
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
            body = await reader.readexactly(int(lengths[0].split()[1]) if lengths else 0)
            seen.append(head + body)
            writer.write(http("200 OK", b"{}"))

    async with serving(handle) as url:
        yield url, seen
