"""Ollama's own API, from a client's side: requests to bytes, answers to values.

The standard is what a real server answers; tests/captures holds such answers.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from aiosollol.core.node import LoadedModel, ModelInfo, full_name
from aiosollol.errors import (
    BadRequest,
    InvalidInput,
    ModelMissing,
    NodeError,
    ProtocolError,
    ResponseError,
    RunnerFailed,
    ServerBusy,
)

# What a server says when the input is at fault. Every other 400 is a failure of the node: a dead
# runner, a failed tokenizer and NaN all come back as 400 or 500 too.
_CALLERS_FAULT = (
    "input length exceeds",
    "maximum context length",
    "invalid input",
    "invalid type",
    "unsupported type",
    "invalid duration",
    "in duration",
    "does not support",
    "missing request body",
    "invalid character",
    "cannot unmarshal",
    "is required",
    "invalid options",
    "invalid value for",
    "dimensions",
    "too short",
    "invalid role",
    "invalid format",
    "invalid image",
    "failed to decode image",
)
_NODES_FAULT = re.compile(r"no longer running|unsupported value: nan|connection refused|\beof\b")


def dump(payload: Mapping[str, Any]) -> bytes:
    """`payload` as a request body, without the keys whose value is None.

    Raises InvalidInput for what JSON cannot carry, such as a lone surrogate.
    """
    return dump_whole({key: value for key, value in payload.items() if value is not None})


def dump_whole(payload: Mapping[str, Any]) -> bytes:
    """`payload` as a request body, with every key. Raises InvalidInput, as `dump` does."""
    try:
        return orjson.dumps(payload, default=_as_dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the request cannot be sent as JSON: {error}") from error


def _as_dict(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError


def loads(body: bytes) -> Any:
    """The JSON value that `body` is. Raises orjson.JSONDecodeError.

    A byte order mark before it is ignored, as RFC 8259 (section 8.1) lets a parser do.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if not body.startswith(BOM_UTF8):
            raise
        return orjson.loads(without_mark(body))


def without_mark(body: bytes) -> bytes:
    """`body` without the byte order mark before it, if there is one."""
    return body[len(BOM_UTF8) :] if body.startswith(BOM_UTF8) else body


def outline(body: bytes) -> bytes:
    """A long answer without most of its numbers: JSON with the same keys, at a tenth of the cost.

    Left out are the numbers of its last list but the first one (a vector, or the `context` of a
    generated text), or the base64 of the first vector in that list. What is left out is not looked
    at. All else stays as it is, so that an error is found wherever it stands.
    """
    if len(body) < _LONG:
        return body
    # With no quote between them, brackets hold numbers, or both are in one string. A quote that no
    # backslash escapes ends the string that `_BASE64` begins.
    start = body.rfind(_OPEN) + 1
    end = body.find(_CLOSE, start)
    if not start or end < 0:
        return body
    if body.find(_QUOTE, start, end) < 0:
        comma = body.find(_COMMA, start, end)
        return body if comma < 0 else body[:comma] + body[end:]
    start = body.find(_BASE64, start, start + _LONG // 4) + len(_BASE64)
    end = body.find(_QUOTE, start)
    if start < len(_BASE64) or end < 0 or body[end - 1] == _BACKSLASH:
        return body
    return body[:start] + b"..." + body[end:]


_LONG = 1024  # bytes; what is shorter is read as quickly as it is cut
_BASE64 = b'"embedding":"'
# Single characters are found at once, where a search of 10 kB of numbers for several took 11 us.
_QUOTE, _BACKSLASH, _OPEN, _CLOSE, _COMMA = b'"\\[],'


def load(node: str, body: bytes) -> dict[str, Any]:
    """An answer's JSON object. Raises ProtocolError, with the beginning of what came instead."""
    try:
        value = loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(node, f"answered {shown(body)}, which is not JSON") from error
    if not isinstance(value, dict):
        raise ProtocolError(node, f"answered {shown(body)}, which is not a JSON object")
    return value


def error_for(node: str, status: int, body: bytes) -> NodeError:
    """The error that stands for an answer with a status other than 200.

    The status alone says little, so the message decides (see ../docs/ollama.md).
    """
    message = error_message(body)
    if message is None:
        if 400 <= status < 600 and len(body) < 200 and not body.lstrip().startswith(b"<"):
            message = body.decode("utf-8", "replace").strip() or "no message"
        else:
            return ProtocolError(node, f"answered status {status} with {shown(body)}")
    low = message.lower()
    kind: type[ResponseError]
    if status == 404 and "model" in low:
        kind = ModelMissing
    elif status == 503 or "server busy" in low:
        kind = ServerBusy
    elif _NODES_FAULT.search(low):
        kind = RunnerFailed
    elif status in (400, 413, 422, 501) and any(sign in low for sign in _CALLERS_FAULT):
        kind = BadRequest
    elif status >= 500 or status == 400:
        kind = RunnerFailed
    else:
        kind = ResponseError
    return kind(node, status, message)


def error_message(body: bytes) -> str | None:
    """The text of an error answer: ``{"error": "..."}`` or OpenAI's ``{"error": {"message"}}``."""
    try:
        value = loads(body)
    except orjson.JSONDecodeError:
        return None
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else None


def load_tags(node: str, body: bytes) -> dict[str, ModelInfo]:
    """Read ``/api/tags``: full model name -> what the node says of it."""
    models = {}
    for entry in _entries(node, body):
        details = entry.get("details")
        details = details if isinstance(details, dict) else {}
        name = full_name(entry["name"])
        models[name] = ModelInfo(
            name,
            _text(entry, "digest"),
            _number(entry, "size"),
            _number(details, "embedding_length"),
            max(0, _number(details, "context_length")),
        )
    return models


def load_ps(node: str, body: bytes) -> dict[str, LoadedModel]:
    """Read ``/api/ps``: full model name -> how it is loaded."""
    return {
        full_name(entry["name"]): LoadedModel(
            full_name(entry["name"]),
            _text(entry, "digest"),
            _number(entry, "size"),
            _number(entry, "size_vram"),
            max(0, _number(entry, "context_length")),
        )
        for entry in _entries(node, body)
    }


def load_version(node: str, body: bytes) -> str:
    """Read ``/api/version``."""
    version = load(node, body).get("version")
    if not isinstance(version, str):
        raise ProtocolError(node, f"answered {shown(body)}, which has no version")
    return version


def _entries(node: str, body: bytes) -> Sequence[dict[str, Any]]:
    models = load(node, body).get("models")
    if models is None:  # Go writes an empty list that was never made as null
        return []
    if not isinstance(models, list):
        raise ProtocolError(node, f"answered {shown(body)}, which has no list of models")
    return [
        entry for entry in models if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    ]


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _number(entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def shown(body: bytes) -> str:
    """The beginning of an answer, as an error shows it."""
    text = body[:60].decode("utf-8", "replace")
    return repr(text + "..." if len(body) > 60 else text) if body else "nothing"


class LineSplitter:
    """Feed it bytes as they come; it hands back whole lines, without their ends.

    Empty lines are dropped. Nothing is copied twice, however small the pieces are.
    """

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that `piece` completes."""
        if not self._parts and piece.find(b"\n") == len(piece) - 1 > 0:
            return [piece[:-1]] if piece.strip() else []  # a line at a time, as servers send them
        end = piece.rfind(b"\n")
        if end < 0:
            if piece:
                self._parts.append(piece)
            return []
        self._parts.append(piece[:end])
        whole = b"".join(self._parts)
        self._parts = [piece[end + 1 :]] if end + 1 < len(piece) else []
        lines = whole.split(b"\n")
        return lines if all(map(bytes.strip, lines)) else [line for line in lines if line.strip()]

    def pending(self) -> bytes:
        """What came of a line that is not whole yet."""
        return b"".join(self._parts)

    def rest(self) -> bytes:
        """What came after the last line end: empty unless the stream was cut off."""
        return self.pending().strip()
