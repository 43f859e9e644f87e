"""Responses in pieces, for tests of HTTP/1.1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from aiosollol.wire.http1 import BadResponse, ResponseParser

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def told(pieces: Iterable[bytes], *, max_head: int = 65536) -> Any:
    """What a parser makes of a whole connection: everything that it says of it, or "bad"."""
    parser = ResponseParser(max_head=max_head)
    try:
        body = b"".join([parser.feed(piece) for piece in pieces])
        keeps_alive = parser.is_complete and parser.keeps_alive
        parser.feed_eof()
    except BadResponse:
        assert not parser.keeps_alive
        with pytest.raises(BadResponse):
            parser.feed(b"x")
        return "bad"
    assert parser.is_complete
    assert not parser.keeps_alive
    return parser.status, dict(parser.headers), body, keeps_alive


def in_bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]
