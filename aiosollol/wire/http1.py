"""Client side of HTTP/1.1: request heads to bytes, bytes of a response to values.

Strict where parsers could disagree about the end of a message (RFC 9112): a response with two
framings, an unknown one, or lines that do not end with CRLF is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from aiosollol.wire.content_coding import CODINGS

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TEXT = r"[^\x00-\x08\x0a-\x1f\x7f]*+"
_IS_TOKEN = re.compile(_TOKEN)
_IS_TEXT = re.compile(_TEXT)
_IS_TARGET = re.compile(r"[\x21-\x7e]+")
_STATUS_LINE = re.compile(rf"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: {_TEXT})?".encode())
_FIELD = re.compile(rf"({_TOKEN}):({_TEXT})".encode())
_CHUNK_SIZE = re.compile(rf"([0-9A-Fa-f]{{1,15}}+)[ \t]*+(?:;{_TEXT})?\r\n".encode())
_LENGTH = re.compile(r"[0-9]{1,18}")

_BEGINNING = b"HTTP/1."
_MAX_LINE = 4096  # bytes of a chunk header with its extensions, or of a trailer line
_MAX_CACHED = 1024
_OURS = frozenset(("content-length", "transfer-encoding"))

# The parser's states: the part to read next.
_HEAD, _LENGTHY, _CHUNKED, _CHUNK_DATA, _CHUNK_END, _TRAILERS, _UNTIL_CLOSE, _NOTHING = range(8)


class BadResponse(ValueError):
    """Bytes that are not an HTTP/1.1 response."""


def request_head(
    method: str, host: str, path: str, headers: Mapping[str, str], length: int | None
) -> bytes:
    """The bytes of a request up to its body.

    host: value of the Host field; a Host in `headers` replaces it.
    path: percent-encoded, with its query.
    length: bytes of the body, None for a request without one.

    Raises ValueError for values that would not arrive unchanged.
    """
    if not (_IS_TOKEN.fullmatch(method) and _IS_TARGET.fullmatch(path)):
        raise ValueError(f"{method} {path!r} cannot be sent as the first line of a request")
    if not any(name.lower() == "host" for name in headers):
        headers = {"Host": host, **headers}
    lines = [f"{method} {path} HTTP/1.1"]
    lines += header_lines(headers)
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def header_lines(headers: Mapping[str, str]) -> list[str]:
    """Headers as lines of a request's head. Raises ValueError, as `request_head` does."""
    lines = []
    for name, value in headers.items():
        if not (_IS_TOKEN.fullmatch(name) and _IS_TEXT.fullmatch(value)):
            raise ValueError(f"the header {name!r} cannot be sent")  # the value may be secret
        if name.lower() in _OURS:
            raise ValueError(f"the header {name} is set for each request and cannot be given")
        lines.append(f"{name}: {value}")
    return lines


class ResponseParser:
    """Incremental parser of one response.

    status: 0 until the head is complete.
    headers: names in lower case, values of repeated names joined.
    is_complete: whether the whole message was received.
    keeps_alive: whether another response may follow on the connection; valid once complete.
    coding: the content coding of the body, which is returned still encoded; "" for none.

    Not for answers to HEAD, which have no body.
    """

    # Class attributes, because every response needs a parser.
    status = 0
    headers: Mapping[str, str] = {}
    is_complete = False
    keeps_alive = False
    coding = ""
    _reads = _HEAD
    _left = 0  # bytes of the body or chunk still to be received
    _held: bytes | bytearray = b""  # an incomplete head or line
    _heads = 0  # bytes of heads and trailers
    _problem = ""

    def __init__(self, *, max_head: int = 65536) -> None:
        """`max_head` bounds the bytes of all heads and trailers of the message."""
        self._max_head = max_head

    def __repr__(self) -> str:
        return f"<ResponseParser {self.status or 'no head yet'}{', whole' * self.is_complete}>"

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that are in `data`. Raises BadResponse."""
        if self._problem:
            raise BadResponse(self._problem)
        try:
            if self._reads == _HEAD:
                data = self._feed_head(data)
            if not data:
                return b""
            reads = self._reads
            if reads == _LENGTHY:
                left = self._left = self._left - len(data)
                if left > 0:
                    return data
                self._complete()
                if left == 0:
                    return data
                self.keeps_alive = False
                return data[:left]
            if reads == _UNTIL_CLOSE:
                return data
            if reads == _NOTHING:  # no request is pending, so extra data cannot be trusted
                self.keeps_alive = False
                return b""
            return self._feed_chunked(data)
        except BadResponse as error:
            self._problem = str(error)
            self.keeps_alive = False
            raise

    def feed_eof(self) -> None:
        """Signal the end of the connection. Raises BadResponse unless the message is complete."""
        if self._reads == _UNTIL_CLOSE:
            self._complete()
        self.keeps_alive = False
        if not self._problem and not self.is_complete:
            has_begun = self.status or self._held or self._heads
            self._problem = f"it ended {'in the middle of' if has_begun else 'without'} an answer"
        if self._problem:
            raise BadResponse(self._problem)

    def _complete(self) -> None:
        self._reads = _NOTHING
        self.is_complete = True

    def _feed_head(self, data: bytes) -> bytes:
        """Read heads, skipping interim responses. Returns the rest of `data`."""
        while data:
            if self._held or (end := data.find(b"\r\n\r\n")) < 0:
                end = self._hold(data)
                if end < 0:
                    return b""
                data, self._held = bytes(self._held), b""
            self._heads += end + 4
            if self._heads > self._max_head:
                raise self._too_long()
            raw, data = data[:end], data[end + 4 :]
            head = _read_head(raw) if end <= _MAX_CACHED else _parse_head(raw)
            if head.status >= 200:
                self.status, self.headers, self._reads, self._left, self.keeps_alive, coding = head
                if coding:
                    self.coding = coding
                self.is_complete = self._reads == _NOTHING
                break
        return data

    def _hold(self, data: bytes) -> int:
        """Append `data` to the buffered head. Returns the end of the head, -1 if incomplete."""
        held = self._held
        if not isinstance(held, bytearray):
            held = self._held = bytearray()
        seen = max(0, len(held) - 3)
        held += data
        # Refuse a non-HTTP answer at once: its server may be waiting for us to send first.
        if not held.startswith(_BEGINNING[: len(held)]):
            raise _no_response(held)
        end = held.find(b"\r\n\r\n", seen)
        if end < 0:
            if self._heads + len(held) > self._max_head:
                raise self._too_long()
            _check_line_ends(held, seen)
        return end

    def _feed_chunked(self, data: bytes) -> bytes:
        if self._held:
            data, self._held = bytes(self._held) + data, b""
        pieces: list[bytes] = []
        at, end, reads = 0, len(data), self._reads
        while at < end:
            if reads == _CHUNKED:
                match = _CHUNK_SIZE.match(data, at)
                if match is None:
                    self._hold_line(data[at:])
                    break
                if match.end() - at - 2 > _MAX_LINE:
                    raise BadResponse("a line between chunks is too long")
                at = match.end()
                size = int(match[1], 16)
                stop = at + size
                if size == 0:
                    reads = _TRAILERS
                elif data.startswith(b"\r\n", stop):  # servers send one chunk at a time
                    pieces.append(data[at:stop])
                    at = stop + 2
                else:
                    self._left = size
                    reads = _CHUNK_DATA
            elif reads == _CHUNK_DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    reads = _CHUNK_END
            elif reads == _CHUNK_END:
                if data.startswith(b"\r\n", at):
                    at += 2
                    reads = _CHUNKED
                elif data[at:] == b"\r":
                    self._held = b"\r"
                    break
                else:
                    raise BadResponse("a chunk does not have its stated length")
            else:
                stop = data.find(b"\r\n", at)
                if stop < 0:
                    self._hold_line(data[at:])
                    break
                self._check_trailer(data[at:stop])
                if stop == at:
                    reads = _NOTHING
                    self.is_complete = True
                    self.keeps_alive = self.keeps_alive and stop + 2 == end
                    break
                at = stop + 2
        self._reads = reads
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_trailer(self, line: bytes) -> None:
        self._heads += len(line) + 2
        if self._heads > self._max_head or len(line) > _MAX_LINE:
            raise self._too_long()
        if line and not _FIELD.fullmatch(line):
            raise BadResponse(f"{_shown(line)} is not a header field")

    def _hold_line(self, line: bytes) -> None:
        """Buffer an incomplete line. Raises BadResponse if it cannot become valid."""
        if b"\n" in line or b"\r" in line[:-1]:
            raise BadResponse(f"{_shown(line)} is not valid between chunks")
        if len(line) - line.endswith(b"\r") > _MAX_LINE:
            raise BadResponse("a line between chunks is too long")
        self._held = line

    def _too_long(self) -> BadResponse:
        return BadResponse(f"its head is longer than {self._max_head} bytes")


class _Head(NamedTuple):
    """A parsed head, its fields in the order in which `ResponseParser` copies them."""

    status: int
    headers: Mapping[str, str]
    reads: int
    length: int
    keeps_alive: bool
    coding: str


def _parse_head(head: bytes) -> _Head:
    """Parse a head, without the empty line at its end. Raises BadResponse."""
    first, *lines = head.split(b"\r\n")
    status_line = _STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise _no_response(first)
    fields: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadResponse(f"{_shown(line)} is not a header field")
        name, value = field[1].decode("ascii").lower(), field[2].strip(b" \t").decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    is_old = status_line[1] == b"0"
    status = int(status_line[2])
    if status == 101:
        raise BadResponse("it switches to another protocol without being asked to")
    reads, length = _framing(status, fields, is_old)
    coding = "" if reads == _NOTHING else _coding(fields.get("content-encoding", ""))
    connection = {token.strip().lower() for token in fields.get("connection", "").split(",")}
    keeps_alive = (
        reads != _UNTIL_CLOSE
        and "close" not in connection
        and (not is_old or "keep-alive" in connection)
    )
    return _Head(status, fields, reads, length, keeps_alive, coding)


# A server's heads differ only in the date, so most are cache hits.
_read_head = lru_cache(maxsize=64)(_parse_head)


def _framing(status: int, fields: Mapping[str, str], is_old: bool) -> tuple[int, int]:
    """How to read the body, and its length if known."""
    coding, lengths = fields.get("transfer-encoding"), fields.get("content-length")
    if coding is not None and lengths is not None:
        raise BadResponse("it has both a Content-Length and a Transfer-Encoding")
    if coding is not None and (is_old or coding.lower() != "chunked"):
        raise BadResponse(f"it has a Transfer-Encoding of {coding[:60]!r}")
    length = 0
    if lengths is not None:
        first, *others = (each.strip(" \t") for each in lengths.split(","))
        if not _LENGTH.fullmatch(first) or any(other != first for other in others):
            raise BadResponse(f"it has a Content-Length of {lengths[:60]!r}")
        length = int(first)
    if status < 200 or status in (204, 304):
        return _NOTHING, 0
    if coding is not None:
        return _CHUNKED, 0
    if lengths is None:
        return _UNTIL_CLOSE, 0
    return (_LENGTHY, length) if length else (_NOTHING, 0)


def _coding(content: str) -> str:
    """The content coding, "" for none: some proxies encode without being asked."""
    if content.lower() in ("", "identity"):
        return ""
    coding = CODINGS.get(content.lower())
    if coding is None:
        raise BadResponse(f"its content is encoded as {content[:60]!r}, which is not supported")
    return coding


def _check_line_ends(held: bytearray, seen: int) -> None:
    """Raise BadResponse for a line end other than CRLF after position `seen`."""
    at = held.find(b"\n", seen)
    while at >= 0:
        if held[at - 1] != 0x0D:
            raise BadResponse("a line of its head does not end with CRLF")
        at = held.find(b"\n", at + 1)


def _no_response(data: bytes | bytearray) -> BadResponse:
    return BadResponse(f"{_shown(data)} is not the beginning of a response")


def _shown(data: bytes | bytearray) -> str:
    return repr(bytes(data[:60]))[1:] + "..." * (len(data) > 60)
