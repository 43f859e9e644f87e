"""`wire.http1`: strict about where a message ends, indifferent to how its bytes are cut."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpResponseParserPy
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.wire.http1 import BadResponse, ResponseParser, request_head

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


# What is a response.


@pytest.mark.parametrize(
    ("data", "body", "keeps_alive"),
    [
        pytest.param(OK + b"Content-Length: 2\r\n\r\n{}", b"{}", True, id="length"),
        pytest.param(OK + b"Content-Length: 0\r\n\r\n", b"", True, id="empty"),
        pytest.param(OK + b"CONTENT-length:2 \t\r\n\r\n{}", b"{}", True, id="case and spaces"),
        pytest.param(OK + b"Content-Length: 2, 2\r\n\r\n{}", b"{}", True, id="equal in a list"),
        pytest.param(
            OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", b"{}", True, id="equal twice"
        ),
        pytest.param(OK + b"\r\nuntil the end", b"until the end", False, id="until it closes"),
        pytest.param(OK + b"\r\n", b"", False, id="until it closes, at once"),
        pytest.param(
            OK + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}", b"{}", False, id="close"
        ),
        pytest.param(
            OK + b"Connection: Foo, CLOSE\r\nContent-Length: 2\r\n\r\n{}", b"{}", False, id="list"
        ),
        pytest.param(
            b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"{}", False, id="HTTP/1.0"
        ),
        pytest.param(
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
            b"{}",
            True,
            id="HTTP/1.0 that stays",
        ),
        pytest.param(
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 2\r\n\r\n{}",
            b"{}",
            False,
            id="close counts more",
        ),
        pytest.param(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}", b"{}", True, id="no reason"),
        pytest.param(
            b"HTTP/1.1 200 Sch\xf6n\r\nContent-Length: 2\r\n\r\n{}", b"{}", True, id="Latin reason"
        ),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", b"{}", True, id="a chunk"),
        pytest.param(CHUNKED + b"0\r\n\r\n", b"", True, id="no chunk"),
        pytest.param(
            CHUNKED + b'1;a=b\r\n{\r\n01 ; c="d"\r\n}\r\n000\r\n\r\n', b"{}", True, id="extensions"
        ),
        pytest.param(
            CHUNKED + b"2\r\n{}\r\n0\r\nExpires: never\r\nX:\r\n\r\n", b"{}", True, id="trailers"
        ),
        pytest.param(CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", True, id="line ends"),
        pytest.param(
            CHUNKED + b"A\r\n0123456789\r\nf\r\n0123456789abcde\r\n0\r\n\r\n",
            b"01234567890123456789abcde",
            True,
            id="hexadecimal",
        ),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
            + OK
            + b"Content-Length: 2\r\n\r\n{}",
            b"{}",
            True,
            id="interim responses",
        ),
        pytest.param(OK + b"Content-Length: 2\r\n\r\n{}HTTP/1.1 200", b"{}", False, id="more"),
        pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\n\r\n\r\n", b"{}", False, id="more after chunks"),
        pytest.param(
            OK + b"Content-Encoding: Identity\r\nContent-Length: 2\r\n\r\n{}",
            b"{}",
            True,
            id="not encoded",
        ),
    ],
)
def test_a_response_is_read_however_it_is_cut(data: bytes, body: bytes, keeps_alive: bool) -> None:
    status, _, found, keeps = told([data])
    assert (status, found, keeps) == (200, body, keeps_alive)
    assert told(in_bytes(data)) == told([data])
    for at in range(len(data)):
        assert told([data[:at], data[at:]]) == told([data]), at


@pytest.mark.parametrize(
    ("value", "coding"),
    [
        (b"gzip", "gzip"),
        (b"X-GZip", "gzip"),
        (b"deflate", "deflate"),
        (b"identity", ""),
        (b"", ""),
    ],
)
def test_an_encoded_body_is_passed_on_with_its_coding(value: bytes, coding: str) -> None:
    head = OK + b"Content-Encoding: " + value + b"\r\n"
    parser = ResponseParser()
    assert parser.feed(head + b"Content-Length: 2\r\n\r\n\x1f\x8b") == b"\x1f\x8b"
    assert (parser.is_complete, parser.coding) == (True, coding)
    parser = ResponseParser()
    assert parser.feed(head + b"Content-Length: 0\r\n\r\n") == b""
    assert (parser.is_complete, parser.coding) == (True, "")


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_none(status: int) -> None:
    head = b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status
    parser = ResponseParser()
    assert parser.feed(head) == b""
    assert parser.is_complete
    assert parser.keeps_alive
    assert parser.feed(b"12345") == b"", "it was promised to nobody"
    assert not parser.keeps_alive


def test_headers_are_by_lower_case_name_and_joined() -> None:
    parser = ResponseParser()
    parser.feed(OK + b"A: 1\r\nB:\t2 3 \r\na: 4\r\nC:\r\nd: \xe9\r\nContent-Length: 0\r\n\r\n")
    assert parser.headers == {"a": "1, 4", "b": "2 3", "c": "", "d": "é", "content-length": "0"}


def test_the_state_is_told_on_the_way() -> None:
    parser = ResponseParser()
    assert parser.feed(OK) == b""
    assert (parser.status, parser.is_complete) == (0, False)
    assert parser.feed(b"Content-Length: 3\r\n\r\na") == b"a"
    assert (parser.status, parser.is_complete) == (200, False)
    assert "200" in repr(parser)
    assert parser.feed(b"bc") == b"bc"
    assert parser.is_complete
    assert parser.feed(b"") == b""
    assert parser.keeps_alive


# What is none.

BAD = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH"),
    pytest.param(b"\x15\x03\x01\x00\x02\x02\x46", id="TLS"),
    pytest.param(b"\r\n" + OK + b"\r\n", id="a line end before it"),
    pytest.param(b"HTTP/1.1", id="cut in its first line"),
    pytest.param(OK + b"Content-Length: 5\r\n", id="cut in its head"),
    pytest.param(OK + b"Content-Length: 5\r\n\r\n1234", id="cut in its body"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="only an interim response"),
    pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", id="another protocol"),
    pytest.param(b"HTTP/2.0 200 OK\r\n\r\n", id="HTTP/2"),
    pytest.param(b"HTTP/1.2 200 OK\r\n\r\n", id="HTTP/1.2"),
    pytest.param(b"http/1.1 200 OK\r\n\r\n", id="in lower case"),
    pytest.param(b"HTTP/1.1  200 OK\r\n\r\n", id="two spaces"),
    pytest.param(b"HTTP/1.1 20 OK\r\n\r\n", id="two digits"),
    pytest.param(b"HTTP/1.1 099 OK\r\n\r\n", id="below a hundred"),
    pytest.param(b"HTTP/1.1 2000 OK\r\n\r\n", id="four digits"),
    pytest.param("HTTP/1.1 ２００ OK\r\n\r\n".encode(), id="wide digits"),
    pytest.param(b"HTTP/1.1 200 O\0K\r\n\r\n", id="NUL in the reason"),
    pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", id="bare line feeds"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\n\r\n", id="a bare line feed"),
    pytest.param(OK + b"A: b\rC: d\r\n\r\n", id="a bare carriage return"),
    pytest.param(OK + b"A: b\0\r\n\r\n", id="NUL in a value"),
    pytest.param(OK + b"A: b\r\n c\r\n\r\n", id="a folded line"),
    pytest.param(OK + b" A: b\r\n\r\n", id="a space before a name"),
    pytest.param(OK + b"A : b\r\n\r\n", id="a space after a name"),
    pytest.param(OK + b": b\r\n\r\n", id="no name"),
    pytest.param(OK + b"A\r\n\r\n", id="no colon"),
    pytest.param(OK + b"\xc3\xa4: b\r\n\r\n", id="a name that is no token"),
    pytest.param(OK + b"Content-Length: -1\r\n\r\n", id="a negative length"),
    pytest.param(OK + b"Content-Length: +1\r\n\r\n1", id="a sign"),
    pytest.param(OK + b"Content-Length: 0x1\r\n\r\n1", id="not decimal"),
    pytest.param(OK + b"Content-Length: 1_0\r\n\r\n1234567890", id="as Python writes it"),
    pytest.param(OK + b"Content-Length: 1 0\r\n\r\n", id="a space inside"),
    pytest.param(OK + b"Content-Length:\r\n\r\n", id="no length"),
    pytest.param(OK + b"Content-Length: ,\r\n\r\n", id="two of none"),
    pytest.param(OK + b"Content-Length: 2, 3\r\n\r\n{}", id="two lengths in a list"),
    pytest.param(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", id="two lengths"),
    pytest.param(OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", id="a huge length"),
    pytest.param(OK + b"Content-Length: \xb2\r\n\r\n{}", id="a superscript"),
    pytest.param(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="two codings"),
    pytest.param(OK + b"Transfer-Encoding: identity\r\n\r\n", id="identity"),
    pytest.param(
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        id="chunked twice",
    ),
    pytest.param(
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="chunks in HTTP/1.0"
    ),
    pytest.param(
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="both"
    ),
    pytest.param(OK + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\n.", id="brotli"),
    pytest.param(
        OK + b"Content-Encoding: gzip, gzip\r\nContent-Length: 1\r\n\r\n.", id="two gzips"
    ),
    pytest.param(CHUNKED, id="chunks: none"),
    pytest.param(CHUNKED + b"2\r\n{}\r\n", id="chunks: no last"),
    pytest.param(CHUNKED + b"2\r\n{}\r\n0\r\n", id="chunks: no end"),
    pytest.param(CHUNKED + b"2\r\n{", id="chunks: cut"),
    pytest.param(CHUNKED + b"zz\r\n", id="chunks: no number"),
    pytest.param(CHUNKED + b"\r\n{}\r\n0\r\n\r\n", id="chunks: no size"),
    pytest.param(CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n", id="chunks: negative"),
    pytest.param(CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n", id="chunks: as Python writes it"),
    pytest.param(CHUNKED + b" 2\r\n{}\r\n0\r\n\r\n", id="chunks: a space before"),
    pytest.param(CHUNKED + b"2 {}\r\n0\r\n\r\n", id="chunks: a space for a line end"),
    pytest.param(CHUNKED + b"2\n{}\n0\n\n", id="chunks: bare line feeds"),
    pytest.param(CHUNKED + b"2;\n\r\n{}\r\n0\r\n\r\n", id="chunks: a line feed in an extension"),
    pytest.param(CHUNKED + b"2;\r\r\n{}\r\n0\r\n\r\n", id="chunks: a return in an extension"),
    pytest.param(CHUNKED + b"2\r\n{}0\r\n\r\n", id="chunks: no line end"),
    pytest.param(CHUNKED + b"2\r\n{}\n0\r\n\r\n", id="chunks: a line feed at the end"),
    pytest.param(CHUNKED + b"2\r\n{}\rx0\r\n\r\n", id="chunks: half a line end"),
    pytest.param(CHUNKED + b"3\r\n{}\r\n0\r\n\r\n", id="chunks: longer than it is"),
    pytest.param(CHUNKED + b"f" * 16 + b"\r\n", id="chunks: huge"),
    pytest.param(CHUNKED + b"2;" + b"a" * 5000 + b"\r\n{}\r\n0\r\n\r\n", id="chunks: a long line"),
    pytest.param(CHUNKED + b"0\r\nno trailer\r\n\r\n", id="trailers: no colon"),
    pytest.param(CHUNKED + b"0\r\nA: b\n\r\n\r\n", id="trailers: a bare line feed"),
    pytest.param(CHUNKED + b"0\r\nA: " + b"b" * 5000 + b"\r\n\r\n", id="trailers: a long line"),
    pytest.param(CHUNKED + b"0\r\n" + b"A: b\r\n" * 12_000 + b"\r\n", id="trailers: too many"),
    pytest.param(OK + b"A: b\r\n" * 12_000 + b"\r\n", id="a huge head"),
    pytest.param(OK + b"A" * 70_000, id="an endless head"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 3000 + OK + b"\r\n", id="endless interim"),
]


@pytest.mark.parametrize("data", BAD)
def test_what_is_no_response_is_refused_however_it_is_cut(data: bytes) -> None:
    assert told([data]) == "bad"
    assert told(in_bytes(data)) == "bad"
    for at in {len(data) // 3, len(data) // 2, max(0, len(data) - 1), max(0, len(data) - 3)}:
        assert told([data[:at], data[at:]]) == "bad", at


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"X", b"HTTP/1.1 200 OK\n", b"\x15\x03\x03\x00\x02"]
)
def test_what_cannot_become_a_response_is_refused_before_it_ends(data: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseParser().feed(data)


def test_the_error_shows_the_beginning_of_what_came() -> None:
    with pytest.raises(BadResponse, match=r"'SSH-2\.0' is not the beginning of a response"):
        ResponseParser().feed(b"SSH-2.0")
    with pytest.raises(BadResponse, match="without an answer"):
        ResponseParser().feed_eof()
    parser = ResponseParser()
    parser.feed(OK)
    with pytest.raises(BadResponse, match="in the middle of an answer"):
        parser.feed_eof()


def test_a_head_may_be_as_long_as_it_may_be() -> None:
    data = OK + b"A: " + b"b" * 100 + b"\r\nContent-Length: 0\r\n\r\n"
    for pieces in ([data], in_bytes(data)):
        assert told(pieces, max_head=len(data)) != "bad"
        assert told(pieces, max_head=len(data) - 1) == "bad"


@pytest.mark.parametrize(
    "hostile",
    [
        OK + b"A: " + b" " * 60_000 + b"\x01\r\n\r\n",
        OK + b"A: b" + b" \t" * 30_000 + b"\x01\r\n\r\n",
        OK + b"a" * 60_000 + b"\r\n\r\n",
        CHUNKED + b"0" * 200_000 + b"\r\n",
        CHUNKED + b"1;" + b" ;" * 100_000 + b"\x01\r\n",
        CHUNKED + b"1" + b" " * 200_000 + b"\x01\r\n",
    ],
)
def test_no_line_takes_time_without_measure(hostile: bytes) -> None:
    """Were a pattern to look at each place from each other place, this would take minutes."""
    assert told([hostile]) == "bad"


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
