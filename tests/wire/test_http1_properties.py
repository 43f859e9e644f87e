"""wire/http1: any bytes in any pieces, and how aiohttp reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from unittest.mock import Mock

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpResponseParserPy
from http1_parts import CHUNKED, OK, in_bytes, told
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.wire.http1 import request_head

# Any bytes, and any cuts.

CUTS = st.lists(st.integers(0, 400), max_size=12)


def pieces_of(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = [0, *sorted(at % (len(data) + 1) for at in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


TOKENS = "!#$%&'*+-.^_`|~09AZaz"
SEEN = '!"(),/:;<=>?@[]{}09AZaz\xa0\xe9\xff'
text = st.text(SEEN, min_size=1, max_size=8)
token = st.text(TOKENS, min_size=1, max_size=8)
words = st.lists(text, max_size=3).map(" \t".join)
fields = st.lists(
    st.tuples(token, words),
    max_size=5,
    unique_by=lambda field: field[0].lower(),
)


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes, dict[str, str], int, bool]:
    """A valid response: its bytes, its body, its headers, its status, and whether it is chunked."""
    body = draw(st.binary(max_size=200))
    status = draw(st.sampled_from([200, 201, 404, 500, 503]))
    given_fields = draw(fields)
    lines = [f"{name}: {value}".encode("latin-1") for name, value in given_fields]
    headers = {name.lower(): value for name, value in given_fields}
    is_chunked = draw(st.booleans())
    if is_chunked:
        headers["transfer-encoding"] = "chunked"
        lines.append(b"Transfer-Encoding: chunked")
        places = sorted({at % (len(body) + 1) for at in draw(CUTS)} | {0, len(body)})
        chunks = [body[a:b] for a, b in pairwise(places)]
        extension = draw(st.sampled_from([b"", b";a", b';a="b"']))
        sent = b"".join(b"%x%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks if c)
        sent += b"0\r\n" + draw(st.sampled_from([b"", b"T: x\r\n"])) + b"\r\n"
    else:
        headers["content-length"] = str(len(body))
        lines.insert(draw(st.integers(0, len(lines))), b"Content-Length: %d" % len(body))
        sent = body
    head = b"\r\n".join([b"HTTP/1.1 %d Any Reason" % status, *lines, b"", b""])
    return head + sent, body, headers, status, is_chunked


@given(responses(), CUTS)
def test_what_was_sent_is_what_is_read(
    response: tuple[bytes, bytes, dict[str, str], int, bool], cuts: list[int]
) -> None:
    data, body, headers, status, _ = response
    assert told(pieces_of(data, cuts)) == (status, headers, body, True)


@given(st.binary(max_size=300), CUTS, st.sampled_from([b"", OK, CHUNKED, b"HTTP/1.1 "]))
def test_any_bytes_are_a_response_or_none(data: bytes, cuts: list[int], before: bytes) -> None:
    assert told(pieces_of(before + data, cuts)) == told([before + data])


MARKS = st.sampled_from(
    [
        *(b"\r\n", b"\n", b"\r", b":", b" ", b"0", b"5", b"\0", b";x", b"abcde", b"A: b\r\n"),
        *(b"5\r\nabcde\r\n", b"0\r\n\r\n", b"Content-Length: 5", b"Connection: close"),
        *(b"Transfer-Encoding: chunked", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 404 X\r\n"),
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ]
)


@given(st.lists(MARKS, max_size=12).map(b"".join), CUTS)
def test_any_likely_bytes_are_a_response_or_none(data: bytes, cuts: list[int]) -> None:
    assert told(pieces_of(data, cuts)) == told([data])
    assert told(pieces_of(CHUNKED + data, cuts)) == told([CHUNKED + data])


@given(responses(), st.data())
def test_a_response_with_one_byte_changed_is_read_in_one_way(
    response: tuple[bytes, bytes, dict[str, str], int, bool], data: st.DataObject
) -> None:
    """Whatever stands at a place: the same is made of it in one piece and byte by byte."""
    sent = bytearray(response[0])
    sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    assert told([bytes(sent)]) == told(in_bytes(bytes(sent)))


# As aiohttp reads it.


def as_aiohttp_reads(data: bytes, loop: asyncio.AbstractEventLoop) -> tuple[int, bytes, bool]:
    protocol = BaseProtocol(loop)
    protocol.transport = Mock()
    parser = HttpResponseParserPy(protocol, loop, 2**16)
    ((message, content),), _, rest = parser.feed_data(data)
    assert not rest
    body = b"".join(getattr(content, "_buffer", ()))  # that of an empty body has none
    return message.code, body, not message.should_close


@given(responses())
def test_aiohttp_reads_the_same(response: tuple[bytes, bytes, dict[str, str], int, bool]) -> None:
    loop = asyncio.new_event_loop()
    try:
        expected = as_aiohttp_reads(response[0], loop)
    finally:
        loop.close()
    status, _, body, keeps_alive = told([response[0]])
    assert (status, body, keeps_alive) == expected


# The other direction.


def test_a_request_head() -> None:
    headers = {"Accept": "*/*", "X-Name": "Jürgen"}
    assert request_head("POST", "a:11434", "/api/embed?x=%20", headers, 5).decode() == (
        "POST /api/embed?x=%20 HTTP/1.1\r\nHost: a:11434\r\nAccept: */*\r\nX-Name: Jürgen\r\n"
        "Content-Length: 5\r\n\r\n"
    )
    assert request_head("GET", "a", "/", {}, None) == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert b"Content-Length: 0\r\n" in request_head("POST", "a", "/", {}, 0)
    assert request_head("GET", "a", "/", {"hOST": "b"}, None).count(b"a") == 0


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET /", "/", {}),
        ("", "/", {}),
        ("GET", "", {}),
        ("GET", "/a b", {}),
        ("GET", "/\r\nA: b", {}),
        ("GET", "/ä", {}),
        ("GET", "/", {"A": "secret\r\nB: secret"}),
        ("GET", "/", {"A": "secret\0"}),
        ("GET", "/", {"A B": "c"}),
        ("GET", "/", {"A:": "c"}),
        ("GET", "/", {"": "c"}),
        ("GET", "/", {"Content-length": "3"}),
        ("GET", "/", {"Transfer-Encoding": "chunked"}),
    ],
)
def test_a_request_that_would_not_arrive_is_not_made(
    method: str, path: str, headers: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="cannot be") as caught:
        request_head(method, "a", path, headers, None)
    assert "secret" not in str(caught.value)
