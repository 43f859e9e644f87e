"""JSON as Go's encoding/json reads it: the same leniency and the same error messages."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

from aiosollol.wire.json_slices import BrokenJSON, read_slice, read_value

MOST = 64 << 10
"""Longest part of a document that is scanned, in bytes."""
_MAX_DEPTH = 10_000

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_DIGITS = re.compile(r"[0-9]*")
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_MAX_DIGITS = 308  # of a float64, without an exponent
_SHOWN = 40  # digits of a number that is refused


class GoJSONError(ValueError):
    """Text that Go cannot read. Its `str` is Go's message: "EOF" if there is no value at all."""


def scan(document: bytes) -> int:
    """The position after the first value of a document. Raises GoJSONError.

    Of a document longer than `MOST`, only the first `MOST` bytes are scanned; without an error in
    them, their end is returned.
    """
    # Latin-1 maps each byte to a character, so positions and names match Go's.
    scanner = _Scanner(document[:MOST].decode("latin-1"))
    try:
        end = scanner.scan()
    except _Ended:
        if len(document) <= MOST:
            raise GoJSONError("unexpected EOF") from None
        end = MOST
    if scanner.too_large:
        number = scanner.too_large[:_SHOWN]
        raise GoJSONError(f"json: cannot unmarshal number {number} into Go value of type float64")
    return end


class _Ended(Exception):
    """The text ends in the middle of a value."""


class _Scanner:
    """One pass over the first value; `scan` returns where it ends."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.too_large = ""  # the first number that is too large for a float64

    def scan(self) -> int:
        self._skip(_SPACE)
        if self.at == len(self.text):
            raise GoJSONError("EOF")
        closers: list[str] = []  # an explicit stack: nesting must not exhaust Python's own
        while True:
            if self._begin_value(closers):
                continue
            if self._end_values(closers):
                return self.at

    def _begin_value(self, closers: list[str]) -> bool:
        """Read a scalar, or open an array or object. True if a value must follow directly."""
        self._skip(_SPACE)
        character = self._peek()
        if character in "{[" and len(closers) == _MAX_DEPTH:
            raise self._error("exceeded max depth")
        if character == "{":
            self.at += 1
            closers.append("}")
            self._skip(_SPACE)
            if self._peek() != "}":
                self._key()
                return True
        elif character == "[":
            self.at += 1
            closers.append("]")
            self._skip(_SPACE)
            if self._peek() != "]":
                return True
        elif character == '"':
            self._string()
        elif character in _LITERALS:
            self._literal(_LITERALS[character])
        elif character in "-0123456789":
            self._number()
        else:
            raise self._error("looking for beginning of value")
        return False

    def _end_values(self, closers: list[str]) -> bool:
        """Close values that end here. True at the end of the first value, False if one follows."""
        while closers:
            self._skip(_SPACE)
            character = self._peek()
            if character == closers[-1]:
                self.at += 1
                closers.pop()
            elif character == ",":
                self.at += 1
                if closers[-1] == "}":
                    self._skip(_SPACE)
                    self._key()
                return False
            else:
                inside = "object key:value pair" if closers[-1] == "}" else "array element"
                raise self._error(f"after {inside}")
        return True

    def _key(self) -> None:
        if self._peek() != '"':
            raise self._error("looking for beginning of object key string")
        self._string()
        self._skip(_SPACE)
        if self._peek() != ":":
            raise self._error("after object key")
        self.at += 1

    def _string(self) -> None:
        self.at += 1
        while True:
            self._skip(_PLAIN)
            character = self._peek()
            if character == '"':
                self.at += 1
                return
            if character != "\\":
                raise self._error("in string literal")
            self.at += 1
            escape = self._peek()
            if escape == "u":
                for _ in range(4):
                    self.at += 1
                    if self._peek() not in "0123456789abcdefABCDEF":
                        raise self._error("in \\u hexadecimal character escape")
            elif escape not in '"\\/bfnrt':
                raise self._error("in string escape code")
            self.at += 1

    def _literal(self, word: str) -> None:
        for expected in word:
            if self._peek() != expected:
                raise self._error(f"in literal {word} (expecting '{expected}')")
            self.at += 1

    def _number(self) -> None:
        begin = self.at
        if self._peek() == "-":
            self.at += 1
            if self._peek() not in "0123456789":
                raise self._error("in numeric literal")
        if self._peek() == "0":
            self.at += 1  # Go ends a number after a leading zero, as JSON does
        else:
            self._skip(_DIGITS)
        if self.text.startswith(".", self.at):
            self.at += 1
            self._digits("after decimal point in numeric literal")
        if self.text.startswith(("e", "E"), self.at):
            self.at += 1
            if self._peek() in "+-":
                self.at += 1
            self._digits("in exponent of numeric literal")
        number = self.text[begin : self.at]
        is_long = len(number) > _MAX_DIGITS or "e" in number or "E" in number
        if is_long and not self.too_large and math.isinf(float(number)):
            self.too_large = number

    def _digits(self, place: str) -> None:
        if self._peek() not in "0123456789":
            raise self._error(place)
        self._skip(_DIGITS)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()

    def _peek(self) -> str:
        if self.at >= len(self.text):
            raise _Ended
        return self.text[self.at]

    def _error(self, place: str) -> GoJSONError:
        character = self.text[self.at]
        shown = {"'": "\\'", '"': '"'}.get(character) or json.dumps(character)[1:-1]
        return GoJSONError(f"invalid character '{shown}' {place}")


__all__ = ["GoJSONError", "kind_of", "loads", "loads_whole", "quoted"]

WHOLE = 256 << 10
"""Longest document that orjson may read in one call, in bytes: 20 ms at most."""


def loads(document: bytes) -> Any:
    """The first value in `document`. Raises GoJSONError.

    However long it is, no call into C takes more than about 100 ms: see `json_slices`.
    """
    if len(document) <= WHOLE:
        try:
            return orjson.loads(document)  # almost everything is plain JSON
        except orjson.JSONDecodeError:
            pass
    return _forgive(document)[0]


def loads_whole(document: bytes) -> Any:
    """As `loads`, but nothing may follow the value."""
    if len(document) <= WHOLE:
        try:
            return orjson.loads(document)
        except orjson.JSONDecodeError:
            pass
    value, end = _forgive(document)
    if document[end:].strip(b" \t\r\n"):
        raise GoJSONError("invalid character after top-level value")
    return value


def _forgive(document: bytes) -> tuple[Any, int]:
    """The first value in `document`, and the position after it."""
    try:
        return read_value(document)
    except BrokenJSON as error:
        end = scan(document)
        # The scan found no error, but orjson or the reader did, possibly after its limit.
        try:
            return read_slice(document[:end]), end
        except orjson.JSONDecodeError:
            where = "" if end == len(document) else f", after its first {end:,} bytes"
            problem = str(error) or f"invalid character or number in the JSON{where}"
            raise GoJSONError(problem) from error


def kind_of(value: object) -> str:
    """The type of a JSON value, as Go's messages name it."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    if value is None:
        return "null"
    return "array" if isinstance(value, list) else "object"


def quoted(text: str) -> str:
    """`text` as Go's %q writes it, for the characters that occur in names."""
    return json.dumps(text, ensure_ascii=False)
