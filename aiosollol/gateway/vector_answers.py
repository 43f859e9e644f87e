"""Answers with many vectors: bounded, counted, and written in pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web

from aiosollol.gateway.bodies import begin, whole
from aiosollol.gateway.middleware.clients import ClientTotals
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse

_WHOLE = 1 << 20  # bytes of an answer that is written in one call
_PIECE = 256 << 10
_ALWAYS = 8 << 20  # bytes of an answer that is never refused because of others
_LATER = "try again later"
JSON_NUMBER, BASE64_NUMBER = 8.0, 16 / 3
"""Bytes of a number at least, or near it: JSON numbers of float32 have about ten with a comma."""


class AnswerMemory:
    """The bytes of all answers with many vectors that are under way.

    Small answers are not refused because of others, and a single one may always be as large as
    `most`.

    most: bytes of one answer, and of all in all processes.
    processes: number of processes.
    """

    def __init__(self, most: int, processes: int = 1) -> None:
        self.most = most
        self._all = most // processes
        self.held = 0
        self._by_client = ClientTotals()

    def check(self, numbers: float) -> None:
        """Raise Refusal if an answer with this many numbers would be too large."""
        if numbers > self.most:
            raise Refusal(413, f"the answer would be over {self._name()}; send fewer texts")

    def take(self, client: str, size: int, own: int) -> None:
        """Count `size` more bytes of a client's answer that has `own` already. Raises Refusal.

        A client with several answers may hold half of them all.
        """
        self.check(own + size)
        held = self._by_client[client]
        if own + size > _ALWAYS:
            if self.held > own and self.held + size > self._all:
                raise Refusal(503, f"the answers under way are over {self._name()}; {_LATER}")
            if held > own and held + size > self._all // 2:
                raise Refusal(
                    503, f"the answers to one client are over half of {self._name()}; {_LATER}"
                )
        self.held += size
        self._by_client.add(client, size)

    def release(self, client: str, size: int) -> None:
        """Remove an answer."""
        self.held -= size
        self._by_client.add(client, -size)

    def _name(self) -> str:
        return f"max_answer_bytes={self.most:,}"


class Frame(NamedTuple):
    """An answer around its vectors.

    empty: the answer without vectors.
    mark: the empty list in it, such as ``"data":[]``.
    entry: makes an entry of the list of its index and vector; None if it is the vector.
    """

    empty: HttpResponse
    mark: bytes
    entry: Callable[[int, bytes], bytes] | None = None


async def send_vectors(
    request: web.Request, frame: Frame, vectors: list[bytes], headers: dict[str, str]
) -> web.StreamResponse:
    """Send an answer; `vectors` is emptied while it is written."""
    before, after = frame.empty.body.rsplit(frame.mark, 1)
    before += frame.mark[:-1]
    if frame.entry is not None:
        for index, vector in enumerate(vectors):
            vectors[index] = frame.entry(index, vector)
    size = len(before) + sum(map(len, vectors)) + max(0, len(vectors) - 1) + 1 + len(after)
    kind = frame.empty.content_type
    if size <= _WHOLE:
        body = b"".join((before, b",".join(vectors), b"]", after))
        return whole(HttpResponse(200, kind, body), headers)
    sent = {"Content-Type": kind, "Content-Length": str(size), **headers}
    response = await begin(request, sent)
    piece, held, comma = [before], 0, b""
    for index, vector in enumerate(vectors):
        piece += (comma, vector)
        held += len(vector)
        vectors[index] = comma = b","
        if held >= _PIECE:
            await response.write(b"".join(piece))
            piece, held = [], 0
    await response.write(b"".join([*piece, b"]", after]))
    await response.write_eof()
    return response
