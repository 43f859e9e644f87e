"""`wire.http1`: strict about where a message ends, indifferent to how its bytes are cut."""

from __future__ import annotations

import pytest
from http1_parts import CHUNKED, OK, in_bytes, told

from aiosollol.wire.http1 import BadResponse, ResponseParser

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
