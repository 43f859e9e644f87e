"""The places where one implementation can stand for another, as Protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Transport(Protocol):
    """The way to one node. `HttpTransport` uses sockets, `testing.FakeTransport` none.

    Both raise nothing but `NodeError` for what goes wrong on the way or at the node, and let
    cancellation through: a cancelled request is cancelled on the wire.
    """

    async def request(
        self, method: str, path: str, body: bytes | None = None, *, timeout: float
    ) -> bytes:
        """The whole body of an answer with status 200.

        `timeout` is in seconds and covers everything, from connecting to the last byte.
        """
        ...

    def stream(
        self, path: str, body: bytes, *, timeout: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The body of the answer to a POST, in pieces of any size, as they arrive.

        Entering waits for the status line, and raises for one other than 200. `timeout` is in
        seconds and covers everything until the last piece. Leaving early closes the connection.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        ...
