"""JSON as a server written in Go reads it: what it forgives, and its words for what it does not.

Go's decoder stops after the first value, and replaces bytes that are not UTF-8 and lone surrogates
by U+FFFD (encoding/json, decode.go).
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from aiosollol.wire.gojson_scan import GoJSONError, scan
from aiosollol.wire.json_slices import BrokenJSON, read_slice, read_value

__all__ = ["GoJSONError", "kind_of", "loads", "loads_whole", "quoted"]

WHOLE = 256 << 10
"""Bytes of a document that orjson may read in one call: that takes 20 ms at most."""


def loads(document: bytes) -> Any:
    """The first value in `document`. Raises GoJSONError.

    However long it is, no call into C takes more than about 100 ms: see `json_slices`.
    """
    if len(document) <= WHOLE:
        try:
            return orjson.loads(document)  # what is plain JSON, which is nearly everything
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
        # What the scan found no fault with, orjson or the reader did: further on, or in itself.
        try:
            return read_slice(document[:end]), end
        except orjson.JSONDecodeError:
            where = "" if end == len(document) else f", after its first {end:,} bytes"
            problem = str(error) or f"invalid character or number in the JSON{where}"
            raise GoJSONError(problem) from error


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
