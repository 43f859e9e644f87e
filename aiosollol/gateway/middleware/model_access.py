"""The models that a request will use, as the endpoint and the node will read it."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from aiosollol.wire.ollama.go_json import GoJSONError, loads
from aiosollol.wire.ollama.server_requests import Refusal

DEFAULT_MODEL = web.AppKey("aiosollol_default_model", str)
"""The model of queued documents, and of texts in the original's form, that name none."""

_NAMES = frozenset(("model", "name", "source", "from", "destination"))
_MARK = re.compile(rb'["{}\[\]]')
_WINDOW = 64 << 10  # bytes searched in one call into C, during which no other thread runs
_BACKSLASH = ord("\\")
_COLON = re.compile(rb"[ \t\r\n]*:")


def models_used(body: bytes, path: str, default: str | None) -> list[str]:
    """Every model that a request names, and the default one if it will be used.

    Names of fields are compared without case, as by servers written in Go, to which the body is
    forwarded. Raises Refusal for a field that is there twice, as readers differ on which one
    counts, and for a model that is no text. Empty for what is no JSON object: no model is used.
    """
    try:
        fields = loads(body)
    except GoJSONError:
        return []
    if not isinstance(fields, dict):
        return []
    named = {
        field: value
        for field, value in fields.items()
        if field.casefold() in _NAMES and value is not None
    }
    if _is_twice(body):
        raise Refusal(403, "a field that names a model is in the request twice")
    models = list(named.values())
    if default is not None and not fields.get("model") and _has_default(path, fields):
        models = [model for model in models if model] + [default]
    if not all(isinstance(model, str) for model in models):
        raise Refusal(403, "a request with this key must name its model")
    return models


def _has_default(path: str, fields: dict[str, Any]) -> bool:
    """Whether the endpoint uses the default model for a request without one."""
    if path == "/api/embed":
        return bool(fields.get("text")) and not fields.get("input")
    return path == "/api/embed/batch"


def _is_twice(body: bytes) -> bool:
    """Whether a field that names a model is in the outermost object twice.

    body: begins with valid JSON. A pass over its strings and brackets: 0.3 us for each.
    """
    depth = at = 0
    seen: set[str] = set()
    while at < len(body):
        match = _MARK.search(body, at, at + _WINDOW)
        if match is None:
            at += _WINDOW
            continue
        mark, begin, at = match[0], match.start(), match.end()
        if mark == b'"':
            at = _string_end(body, at)
            if depth == 1 and at - begin < _LONGEST_KEY and _COLON.match(body, at, at + _WINDOW):
                name = _key(body[begin:at])
                if name in seen:
                    return True
                if name in _NAMES:
                    seen.add(name)
        elif mark in (b"{", b"["):
            depth += 1
        else:
            depth -= 1
            if not depth:
                break
    return False


def _string_end(body: bytes, at: int) -> int:
    """The position after the quote that ends a string, the content of which begins at `at`."""
    while (quote := body.find(b'"', at)) >= 0:
        before = quote - 1
        while before >= at and body[before] == _BACKSLASH:
            before -= 1
        if (quote - before) % 2:  # an even number of backslashes
            return quote + 1
        at = quote + 1
    return len(body)


_LONGEST_KEY = 6 * len("destination") + 3  # each character as an escape


def _key(token: bytes) -> str:
    try:
        return str(loads(token)).casefold()
    except GoJSONError:
        return ""
