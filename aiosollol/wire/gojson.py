"""JSON as a server written in Go reads it: what it forgives, and its words for what it does not.

Go's decoder stops after the first value, replaces bytes that are not UTF-8 and lone surrogates by
U+FFFD, and names the byte at which it gave up. The messages are those of Go's encoding/json
(scanner.go, decode.go).
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_DIGITS = re.compile(r"[0-9]*")
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class GoJSONError(ValueError):
    """Text that Go cannot read. Its `str` is Go's message: "EOF" where there is no value at all."""


def loads(body: bytes) -> Any:
    """The first value in `body`. Raises GoJSONError."""
    try:
        return orjson.loads(body)  # what is plain JSON, which is nearly everything
    except orjson.JSONDecodeError:
        # Go scans bytes, and Latin-1 gives each byte a character: positions and names agree.
        end = _Scanner(body.decode("latin-1")).scan()
        try:
            return _without_surrogates(json.loads(body[:end].decode("utf-8", "replace")))
        except RecursionError:
            raise GoJSONError("exceeded max depth") from None


def kind_of(value: object) -> str:
    """What Go's messages call the type of a JSON value."""
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


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", _REPLACEMENT, value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    return value


class _Scanner:
    """One pass over the first value; `scan` returns where it ends."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

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
        """Close what ends here. True at the end of the first value, False if another follows."""
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
            raise GoJSONError("unexpected EOF")
        return self.text[self.at]

    def _error(self, place: str) -> GoJSONError:
        character = self.text[self.at]
        shown = {"'": "\\'", '"': '"'}.get(character) or json.dumps(character)[1:-1]
        return GoJSONError(f"invalid character '{shown}' {place}")
