"""The Content-Encoding of requests: gzip and deflate everywhere, zstd where Ollama accepts it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import hdrs, web

from aiosollol.errors import MissingExtra
from aiosollol.wire.content_coding import CODINGS, BadContent, ContentDecoder, ZstdDecoder
from aiosollol.wire.ollama.server_requests import Refusal

_PIECE = 1 << 20  # decoded in one turn of the event loop: 1 to 3 ms
_UNSUPPORTED = frozenset(("br", "compress", "x-compress", "zstd"))
_IS_DECODED = web.RequestKey("aiosollol_is_decoded", bool)

ACCEPTED = {"Accept-Encoding": "gzip, deflate"}
"""The header of a 415 (RFC 9110, section 15.5.16)."""

Grow = Callable[[int], None]
"""Called with the number of bytes by which the content has grown; may raise."""


async def decode(request: web.Request, most: int, grow: Grow | None = None) -> None:
    """Replace the body of a request, as the client sent it, with its content.

    most: bytes of content. Raises Refusal: 413 for more, 400 for what is not in its encoding or is
    cut short, 415 for an encoding that this endpoint does not accept.
    """
    if hdrs.CONTENT_ENCODING not in request.headers or request.get(_IS_DECODED):
        return
    request[_IS_DECODED] = True
    if request.content.total_compressed_bytes is not None:  # aiohttp has decoded it
        return
    given = request.headers[hdrs.CONTENT_ENCODING].strip().lower()
    decoder = _decoder(given, request.path)
    if decoder is None:
        return
    data = await request.read()
    pieces, size = [], 0
    try:
        while data or decoder.has_more:
            piece = decoder.decode(data, min(_PIECE, most - size + 1))
            data = b""
            size += len(piece)
            if size > most:
                raise Refusal(413, f"the request is larger than {most:,} bytes (max_body)")
            if grow is not None:
                grow(len(piece))
            pieces.append(piece)
            if decoder.has_more:
                await asyncio.sleep(0)
    except BadContent as error:
        raise _undecodable(f"it is not {given}") from error
    if not decoder.is_complete:
        raise _undecodable(f"the {given} is cut short")
    request._read_bytes = pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _decoder(coding: str, path: str) -> ContentDecoder | ZstdDecoder | None:
    """The decoder for a Content-Encoding; None for one that means none, which Ollama ignores."""
    if coding in CODINGS:
        return ContentDecoder(CODINGS[coding])
    if coding == "zstd" and path.startswith("/v1/"):
        try:
            return ZstdDecoder()
        except MissingExtra as error:
            # Not its text, which names folders of this machine.
            message = f"the Content-Encoding zstd needs the extra {error.extra!r} on the gateway"
            raise Refusal(415, f"{message}; send gzip") from error
    parts = {part.strip() for part in coding.split(",")}
    if not parts.isdisjoint(_UNSUPPORTED) or ("," in coding and not parts.isdisjoint(CODINGS)):
        raise Refusal(415, f"the Content-Encoding {coding[:40]!r} is not accepted here; send gzip")
    return None


def _undecodable(problem: str) -> Refusal:
    return Refusal(400, f"the request was refused: undecodable Content-Encoding: {problem}")
