"""Reads JSON of any size in slices, so that other threads can run in between.

orjson reads a document in one call, during which no other thread runs. That takes 1 ns a byte for
text, but up to 80 ns for short keys or lists of empty lists: 5 s for 64 MB. Here a document is cut
at commas into slices of 64 kB, which orjson parses and validates. The total takes up to three times
as long. The longest single call takes 100 ms for a document of 64 MB: for one string of that
length, or an object with the maximum number of keys.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

import orjson

SLICE = 64 << 10
MAX_DEPTH = 1024
"""orjson's limit; Go's is 10,000."""
MAX_VALUES, MAX_NESTED = 5_000_000, 1_000_000
"""Limit of values in one document, and of lists and objects among them. Freeing more, or the
garbage collector's search through them, would block other requests for too long."""
MAX_KEYS = 2_500_000
"""Keys in one object: resizing a dictionary at 2.8 million keys takes more than 100 ms."""
MAX_MENDED = 8 << 20
"""Bytes of one string: reading a longer one would block other requests for too long."""

LONG_STRING = 1 << 20
"""Bytes of a string that is decoded by itself, in slices."""

_COUNTED = 1 << 20  # bytes in one call: a longer one would block other threads
_SOLID = re.compile(rb"[^ \t\r\n]")
_SPECIAL = re.compile(rb"[\x00-\x1f\\]")  # what a string may not have, or not mean itself
_SPACE = b" \t\r\n"
_QUOTE = ord('"')
# In a window without escaped quotes: everything up to a bracket or an unterminated string.
_RUN = re.compile(rb'[^"\[\]{}]*(?:"[^"]*"[^"\[\]{}]*)*')
_STRING = re.compile(rb'"[^"]*"?')
_CLOSING = {ord("["): ord("]"), ord("{"): ord("}")}
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a surrogate pair
    r"|u([dD][89a-fA-F][0-9a-fA-F]{2})|[^u]|u)"
)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class BrokenJSON(ValueError):
    """A document that is not JSON, or exceeds a limit. Its `str` is the problem, or empty."""


def read_value(document: bytes) -> tuple[Any, int]:
    """The list, object or string at the beginning of a document, and the position after it.

    Invalid UTF-8 and lone surrogates become U+FFFD, as in Go. Raises BrokenJSON.
    """
    return _Reader(document).read()


def read_slice(text: bytes) -> Any:
    """A whole document, in one call if it is plain JSON. Raises orjson.JSONDecodeError."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        if len(text) > MAX_MENDED:
            raise
        return orjson.loads(_mend(text))


def _decoded(document: bytes, begin: int, end: int) -> str | None:
    """The string between two quotes; None if it has escapes or is invalid."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pieces = []
    for at in range(begin, end, SLICE):
        text = document[at : min(at + SLICE, end)]
        if _SPECIAL.search(text) is not None:
            return None
        try:
            pieces.append(decoder.decode(text, final=at + SLICE >= end))
        except UnicodeDecodeError:
            return None
    return "".join(pieces)


def _mend(text: bytes) -> str:
    """`text` with invalid UTF-8 and lone surrogates, which Go accepts, replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(text[at : at + SLICE]) for at in range(0, len(text), SLICE)]
    return _ESCAPE.sub(_mend_escape, "".join([*pieces, decoder.decode(b"", final=True)]))


def _mend_escape(match: re.Match[str]) -> str:
    return _REPLACEMENT if match[1] else match[0]


def _without_escapes(text: bytes) -> bytes:
    """`text` with escaped quotes and backslashes replaced by other characters."""
    return text.replace(rb"\\", b"__").replace(rb"\"", b"__")


def _count_values(text: bytes) -> tuple[int, int]:
    """The number of lists and objects, and of all values, in JSON without strings.

    Each value but the first in a list or object follows a comma.
    """
    nested = text.count(b"[") + text.count(b"{")
    return nested, nested + text.count(b",")


class _Level:
    """An open list or object.

    begin: position of its opening bracket.
    closing: its closing bracket.
    start: position up to which it is read.
    value: its elements so far, None while it may still be part of a slice.
    follows_value: whether `start` is right after a value that was read by itself.
    follows_comma: whether `start` is right after a comma.
    """

    __slots__ = ("begin", "closing", "follows_comma", "follows_value", "start", "value")

    def __init__(self, begin: int, closing: int) -> None:
        self.begin = begin
        self.closing = closing
        self.start = begin + 1
        self.value: Any = None
        self.follows_value = False
        self.follows_comma = False


class _Reader:
    """One pass over a document in windows, each beginning outside strings."""

    def __init__(self, document: bytes) -> None:
        self._document = document
        self._levels: list[_Level] = []
        self._values = self._nested = 0
        self._may_have_many = False
        if len(document) > MAX_NESTED:
            # Also counts commas in strings, but few documents have that many.
            nested = values = 0
            for at in range(0, len(document), _COUNTED):
                counts = _count_values(document[at : at + _COUNTED])
                nested, values = nested + counts[0], values + counts[1]
            self._may_have_many = nested > MAX_NESTED or values > MAX_VALUES

    def read(self) -> tuple[Any, int]:
        document, levels = self._document, self._levels
        first = _SOLID.search(document)
        at = len(document) if first is None else first.start()
        if document[at : at + 1] == b'"':
            return self._parse(document[at : (end := self._string_end(at))]), end
        if document[at : at + 1] not in (b"[", b"{"):
            raise BrokenJSON
        counted = at
        while at < len(document):
            if self._may_have_many:
                self._count(document[counted:at])
                counted = at
            if levels and at == levels[-1].start and (comma := self._guess(levels[-1])):
                at = comma + 1
                continue
            window = _without_escapes(document[at : at + SLICE])
            position = 0
            while (run := _RUN.match(window, position)) is not None:  # it always matches
                end = run.end()
                if levels and at + end - levels[-1].start > SLICE:
                    level = levels[-1]
                    if self._cut(level, window[position:end], at + position):
                        at = level.start
                        break
                if end == len(window):
                    at += end
                    break
                mark, position = window[end], end + 1
                if mark == _QUOTE:
                    begin, at = at + end, self._string_end(at + end)
                    if at - begin > LONG_STRING and levels:
                        self._take_string(levels[-1], begin, at)
                    break
                if mark in _CLOSING:
                    if len(levels) == MAX_DEPTH:
                        raise BrokenJSON("exceeded max depth")
                    levels.append(_Level(at + end, _CLOSING[mark]))
                    continue
                value = self._close(mark, at + end)
                if not levels:
                    return value, at + position
        raise BrokenJSON("unexpected EOF")

    def _guess(self, level: _Level) -> int:
        """Read a slice up to a comma that is probably between values; its position, or 0.

        If the slice parses, the guess was right. This saves following every bracket.
        """
        document, start = self._document, level.start
        for ending in (b"},", b'",', b"],", b","):
            at = document.rfind(ending, start + SLICE // 2, start + SLICE)
            if at < 0:
                continue
            comma = at + len(ending) - 1
            try:
                found = self._read(level, comma)
            except BrokenJSON:
                continue
            self._take(level, found, comma)
            return comma
        return 0

    def _take(self, level: _Level, found: Any, comma: int) -> None:
        """Add to a level the elements read up to a comma."""
        self._add(level, found)
        level.start = comma + 1
        level.follows_value, level.follows_comma = False, True

    def _count(self, text: bytes) -> None:
        """Count the values in skipped text."""
        nested, values = _count_values(_STRING.sub(b"", _without_escapes(text)))
        self._nested += nested
        self._values += values
        if self._nested > MAX_NESTED:
            raise BrokenJSON(f"invalid input: more than {MAX_NESTED:,} arrays and objects")
        if self._values > MAX_VALUES:
            raise BrokenJSON(f"invalid input: more than {MAX_VALUES:,} values")

    def _cut(self, level: _Level, run: bytes, at: int) -> bool:
        """Read a level up to the last comma in a run that begins at `at`.

        False if there is no comma.
        """
        end = len(run)
        while True:
            quote = run.rfind(b'"', 0, end)
            comma = run.rfind(b",", quote + 1, end)
            if comma >= 0:
                break
            if quote < 0:
                return False
            end = run.rfind(b'"', 0, quote)  # the beginning of that string
        self._take(level, self._read(level, at + comma), at + comma)
        return True

    def _string_end(self, at: int) -> int:
        """The position after the string that begins at `at`."""
        document, at = self._document, at + 1
        while True:
            window = _without_escapes(document[at : at + SLICE])
            quote = window.find(b'"')
            if quote >= 0:
                return at + quote + 1
            if at + len(window) == len(document):
                raise BrokenJSON("unexpected EOF")
            at += len(window) - window.endswith(b"\\")  # it may escape the next character

    def _take_string(self, level: _Level, begin: int, end: int) -> None:
        """Add a long string to a level, unless it is a key or cannot be decoded in slices."""
        after = _SOLID.search(self._document, end)
        is_key = after is not None and after[0] == b":"
        if not is_key and (value := _decoded(self._document, begin + 1, end - 1)) is not None:
            self._put(level, begin, value)
            level.start = end

    def _close(self, mark: int, mark_at: int) -> Any:
        """End the innermost level. Returns its value if it was the outermost."""
        levels = self._levels
        level = levels.pop()
        if mark != level.closing:
            raise BrokenJSON
        if levels and level.value is None and mark_at - level.begin < SLICE:
            return None  # its text remains part of the enclosing level
        self._add(level, self._read(level, mark_at))
        if levels:
            self._put(levels[-1], level.begin, level.value)
            levels[-1].start = mark_at + 1
        return level.value

    def _put(self, level: _Level, at: int, value: Any) -> None:
        """Add to a level a separately read value that begins at `at`."""
        # The slice before it gets an empty string in its place: a comma or key must precede it.
        before = self._read(level, at, b'""')
        if isinstance(before, list):
            before[-1] = value
        else:
            before[self._key_before(level, at)] = value
        self._add(level, before)
        level.follows_value, level.follows_comma = True, False

    def _key_before(self, level: _Level, at: int) -> str:
        """The key of the value that begins at `at`."""
        text = _without_escapes(self._document[level.start : at])
        end = text.rfind(b'"')
        begin = text.rfind(b'"', 0, end)
        key: str = self._parse(self._document[level.start + begin : level.start + end + 1])
        return key

    def _read(self, level: _Level, end: int, last: bytes = b"") -> Any:
        """The elements of a level from its `start` to `end`, a comma, followed by `last`."""
        is_list = level.closing == ord("]")
        text, needs_element = self._document[level.start : end], level.follows_comma
        if level.follows_value:
            text = text.lstrip(_SPACE)
            if text[:1] == b",":
                text, needs_element = text[1:], True
            elif text or last:
                raise BrokenJSON
        opening, closing = (b"[", b"]") if is_list else (b"{", b"}")
        found = self._parse(b"".join((opening, text, last, closing)))
        if needs_element and not found:
            raise BrokenJSON
        return found

    def _parse(self, text: bytes) -> Any:
        try:
            return read_slice(text)
        except orjson.JSONDecodeError as error:
            raise BrokenJSON from error

    def _add(self, level: _Level, found: Any) -> None:
        if level.value is None:
            level.value = found
        elif isinstance(found, list):
            level.value += found
        else:
            level.value.update(found)
            if len(level.value) > MAX_KEYS:
                raise BrokenJSON(f"invalid input: more than {MAX_KEYS:,} keys in one object")
