"""Client side of Ollama's native API: requests to bytes, answers to values.

The reference is what a real server answers, as recorded in tests/captures.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from aiosollol.core.model_names import full_name, is_valid_name, shortest_name
from aiosollol.core.node import LoadedModel, ModelInfo
from aiosollol.errors import (
    BadRequest,
    FaultKind,
    InvalidInput,
    ModelMissing,
    NodeError,
    NodeUnavailable,
    ProtocolError,
    ResponseError,
    RunnerFailed,
    ServerBusy,
)
from aiosollol.wire.ollama.error_catalogue import fault_of

_TALK_PATHS = frozenset(
    (
        "/api/chat",
        "/api/generate",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/responses",
    )
)
_UNAVAILABLE = frozenset((408, 502, 503, 504))
_SHORT = 200  # bytes; longest answer that may be a plain-text message


def dump(payload: Mapping[str, Any]) -> bytes:
    """`payload` as a request body, without keys whose value is None.

    Raises InvalidInput for values that JSON cannot represent, such as a lone surrogate.
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
    """The JSON value in `body`. Raises orjson.JSONDecodeError.

    A leading byte order mark is ignored, as RFC 8259 (section 8.1) allows.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if not body.startswith(BOM_UTF8):
            raise
        return orjson.loads(without_mark(body))


def without_mark(body: bytes) -> bytes:
    """`body` without its byte order mark, if it has one."""
    return body[len(BOM_UTF8) :] if body.startswith(BOM_UTF8) else body


def outline(body: bytes) -> bytes:
    """A long answer without most of its numbers: the same keys, a tenth of the parsing cost.

    Removes all but the first number of the last list (a vector, or the `context` of a generated
    text), or the base64 of the first vector in that list, unchecked. The rest is kept, so that an
    error is found wherever it is.
    """
    if len(body) < _LONG:
        return body
    # Brackets without a quote between them hold numbers, or both are inside one string. The first
    # unescaped quote ends the string that `_BASE64` begins.
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


_LONG = 1024  # bytes; parsing a shorter answer is as fast as cutting it
_BASE64 = b'"embedding":"'
# Finding a single character is almost free; a pattern took 11 us on 10 kB of numbers.
_QUOTE, _BACKSLASH, _OPEN, _CLOSE, _COMMA = b'"\\[],'


def load(node: str, body: bytes) -> dict[str, Any]:
    """An answer's JSON object. Raises ProtocolError, which quotes the beginning of the answer."""
    try:
        value = loads(body)
    except orjson.JSONDecodeError as error:
        words = f"answered {shown(body)}, which is not JSON"
        raise ProtocolError(node, words, is_foreign=True) from error
    if not isinstance(value, dict):
        raise ProtocolError(node, f"answered {shown(body)}, which is not a JSON object")
    return value


def error_for(
    node: str,
    status: int,
    body: bytes,
    *,
    path: str = "",
    retry_after: float | None = None,
    hint: str = "",
) -> NodeError:
    """The error for an answer with a status other than 200.

    The status alone is ambiguous, so the message decides (see docs/ollama.md).

    path: the endpoint, without the prefix of the node's address. A 400 with an unknown message is
        the caller's fault only on chat and generate: the embedding endpoints also send it for
        failures of the node.
    retry_after: seconds, from the answer.
    hint: advice for the user.
    """
    words = error_message(body)
    message = words or _plain_message(body)
    if words is None and (status in _UNAVAILABLE or status == 429):
        message = message or f"answered {shown(body)}"
    elif message is None or not (words is not None or 400 <= status < 600):
        detail = f"answered status {status} with {shown(body)}"
        return ProtocolError(node, f"{detail}; {hint}" if hint else detail, is_foreign=True)
    if words is not None:
        hint = ""  # Ollama answered, so the address is right
    fault = fault_of(status, message)
    kind = _class_of(
        fault, status, message, is_ollamas=words is not None, is_talk=path in _TALK_PATHS
    )
    return kind(node, status, message, fault=fault, retry_after=retry_after, hint=hint)


def _plain_message(body: bytes) -> str | None:
    """The text of a plain-text error; None if it is not a message, such as a web page."""
    if len(body) >= _SHORT or body.lstrip().startswith(b"<"):
        return None
    return body.decode("utf-8", "replace").strip() or "no message"


def _class_of(
    fault: FaultKind | None, status: int, message: str, *, is_ollamas: bool, is_talk: bool
) -> type[ResponseError]:
    """The class of an error. is_ollamas: whether it has Ollama's error format."""
    if fault in ("request", "text"):
        return BadRequest
    if fault == "model" or (fault is None and status == 404 and "model" in message.lower()):
        return ModelMissing
    if fault == "busy" or status == 429:
        return ServerBusy
    if status in _UNAVAILABLE:
        # A 503 in Ollama's format comes from a running server: its queue is full.
        is_busy = status == 503 and is_ollamas and fault is None
        return ServerBusy if is_busy else NodeUnavailable
    if fault is None and status == 400 and is_ollamas and is_talk:
        return BadRequest
    return RunnerFailed if status >= 500 or status == 400 else ResponseError


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
    """Read ``/api/tags``: `full_name` of each model -> its entry."""
    models = {}
    for entry in _entries(node, body):
        details = entry.get("details")
        details = details if isinstance(details, dict) else {}
        name = entry["name"]
        models[full_name(name)] = ModelInfo(
            shortest_name(name),
            _text(entry, "digest"),
            _number(entry, "size"),
            _number(details, "embedding_length"),
            max(0, _number(details, "context_length")),
            _text(details, "family"),
        )
    return models


def load_ps(node: str, body: bytes) -> dict[str, LoadedModel]:
    """Read ``/api/ps``: `full_name` of each model -> how it is loaded."""
    return {
        full_name(entry["name"]): LoadedModel(
            shortest_name(entry["name"]),
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
    if models is None:  # Go writes a nil slice as null
        return []
    if not isinstance(models, list):
        raise ProtocolError(node, f"answered {shown(body)}, which has no list of models")
    return [
        entry
        for entry in models
        if isinstance(entry, dict)
        and isinstance(name := entry.get("name"), str)
        and is_valid_name(name)
    ]


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _number(entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def shown(body: bytes) -> str:
    """The beginning of an answer, for error messages."""
    text = body[:60].decode("utf-8", "replace")
    return repr(text + "..." if len(body) > 60 else text) if body else "nothing"


class LineSplitter:
    """Splits a byte stream into complete lines, without their line ends.

    Empty lines are dropped. No byte is copied twice, however small the pieces are.
    """

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that `piece` completes."""
        if not self._parts and piece.find(b"\n") == len(piece) - 1 > 0:
            return [piece[:-1]] if piece.strip() else []  # servers send one line at a time
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
        """The incomplete line received so far."""
        return b"".join(self._parts)

    def rest(self) -> bytes:
        """The bytes after the last line end: empty unless the stream was cut off."""
        return self.pending().strip()
