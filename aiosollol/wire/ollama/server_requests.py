"""Server side of Ollama's requests: bodies to values, checked in Ollama's order.

The fake, the embedded node and the gateway all read requests here, so that they refuse the same
requests with the same messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from aiosollol.core.durations import parse_duration
from aiosollol.core.model_names import is_valid_name
from aiosollol.errors import InvalidInput, SollolError
from aiosollol.wire.ollama.go_json import (
    GoJSONError,
    kind_of,
    loads,
    quoted,
)

_INT64 = range(-(2**63), 2**63)


class Refusal(SollolError):
    """A request that a server answers with an error. Never raised to callers of the library.

    status: the HTTP status.
    message: the error text.
    is_early: whether Ollama's compatibility layer refuses it before the request proper, which
        changes the content type.
    """

    def __init__(self, status: int, message: str, *, is_early: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.is_early = is_early


@dataclass(frozen=True, slots=True)
class EmbedAsked:
    """A request to one of the three embedding endpoints.

    dimensions: length of the vectors, 0 for the full length.
    keep_alive: seconds, infinite for "for ever", None if not given.
    encoding: "float", or "base64" (only /v1/embeddings).
    """

    model: str
    texts: Sequence[str]
    dimensions: int = 0
    truncate: bool = True
    keep_alive: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    encoding: str = "float"


@dataclass(frozen=True, slots=True)
class ChatAsked:
    """A request to /api/chat."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    stream: bool = True
    tools: Sequence[Any] = ()
    keep_alive: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerateAsked:
    """A request to /api/generate."""

    model: str
    prompt: str
    stream: bool = True
    keep_alive: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def check_model_name(model: str) -> None:
    """Raise Refusal for an invalid name. An empty name is refused elsewhere, with another text."""
    if model.strip() and not is_valid_name(model):
        raise Refusal(400, "invalid model name")


def read_embed(body: bytes) -> EmbedAsked:
    """Read a request to /api/embed. Raises Refusal.

    An empty string or a missing input counts as no input: both only load the model.
    """
    fields = _Fields.read(body, "EmbedRequest")
    given = fields.any("input")
    asked = EmbedAsked(
        model=fields.text("model"),
        texts=[given] if isinstance(given, str) and given else given or [],
        dimensions=max(0, fields.integer("dimensions")),
        truncate=fields.boolean("truncate") is not False,
        keep_alive=fields.duration("keep_alive"),
        options=fields.mapping("options"),
    )
    check_model_name(asked.model)
    _check_texts(given)
    return asked


def read_embeddings(body: bytes) -> EmbedAsked:
    """Read a request to the legacy /api/embeddings, which has one `prompt`. Raises Refusal."""
    fields = _Fields.read(body, "EmbeddingRequest")
    prompt = fields.text("prompt")
    asked = EmbedAsked(
        model=fields.text("model"),
        texts=[prompt] if prompt else [],
        keep_alive=fields.duration("keep_alive"),
        options=fields.mapping("options"),
    )
    check_model_name(asked.model)
    return asked


def read_openai_embeddings(body: bytes, *, knows_base64: bool = True) -> EmbedAsked:
    """Read a request to /v1/embeddings. Raises Refusal.

    `knows_base64` is False for a server older than 0.12.7, which ignores `encoding_format`.
    """
    fields = _Fields.read(body, "EmbedRequest", is_early=True)
    given = fields.any("input")
    if given is None or given == []:
        raise Refusal(400, "invalid input", is_early=True)
    encoding = fields.text("encoding_format").lower() if knows_base64 else ""
    if encoding not in ("", "float", "base64"):
        raise Refusal(
            400,
            f"Invalid value for 'encoding_format' = {fields.text('encoding_format')}. "
            "Supported values: ['float', 'base64'].",
            is_early=True,
        )
    asked = EmbedAsked(
        model=fields.text("model"),
        texts=[given] if isinstance(given, str) else given,
        dimensions=max(0, fields.integer("dimensions")),
        encoding=encoding or "float",
    )
    check_model_name(asked.model)
    _check_texts(given)
    return asked


def read_chat(body: bytes) -> ChatAsked:
    """Read a request to /api/chat. Raises Refusal."""
    fields = _Fields.read(body, "ChatRequest")
    messages = fields.array("messages")
    for message in messages:
        if not isinstance(message, dict):
            raise Refusal(400, _mismatch(message, "ChatRequest.messages", "api.Message"))
        content = message.get("content")
        if not isinstance(content, str | None):
            raise Refusal(400, _mismatch(content, "ChatRequest.messages.content", "string"))
    asked = ChatAsked(
        model=fields.text("model"),
        messages=messages,
        stream=fields.boolean("stream") is not False,
        tools=fields.array("tools"),
        keep_alive=fields.duration("keep_alive"),
        options=fields.mapping("options"),
    )
    check_model_name(asked.model)
    return asked


def read_generate(body: bytes) -> GenerateAsked:
    """Read a request to /api/generate. Raises Refusal."""
    fields = _Fields.read(body, "GenerateRequest")
    asked = GenerateAsked(
        model=fields.text("model"),
        prompt=fields.text("prompt"),
        stream=fields.boolean("stream") is not False,
        keep_alive=fields.duration("keep_alive"),
        options=fields.mapping("options"),
    )
    check_model_name(asked.model)
    return asked


def read_show(body: bytes) -> str:
    """The model of a request to /api/show. Raises Refusal."""
    fields = _Fields.read(body, "ShowRequest")
    model = fields.text("model") or fields.text("name")
    if not model:
        raise Refusal(400, "model is required")
    check_model_name(model)
    return model


def read_delete(body: bytes) -> str:
    """The model of a request to /api/delete. Raises Refusal."""
    fields = _Fields.read(body, "DeleteRequest")
    model = fields.text("model") or fields.text("name")
    if not model.strip():
        raise Refusal(400, "model is required")
    if not is_valid_name(model):
        raise Refusal(400, f"name {quoted(model)} is invalid")
    return model


def read_copy(body: bytes) -> tuple[str, str]:
    """Source and destination of a request to /api/copy. Raises Refusal."""
    fields = _Fields.read(body, "CopyRequest")
    names = {name: fields.text(name) for name in ("source", "destination")}
    for name, value in names.items():
        if not is_valid_name(value):
            raise Refusal(400, f"{name} {quoted(value)} is invalid")
    return names["source"], names["destination"]


def _check_texts(given: object) -> None:
    """Refuse an `input` other than text or texts. Go checks it after all other fields."""
    if given is None or isinstance(given, str):
        return
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise Refusal(400, "invalid input type")


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of a body, with the types of the Go structure `struct`; null counts as absent."""

    values: Mapping[str, Any]
    struct: str
    is_early: bool

    @classmethod
    def read(cls, body: bytes, struct: str, *, is_early: bool = False) -> _Fields:
        try:
            value = loads(body)
        except GoJSONError as error:
            message = str(error)
            if message == "EOF" and not is_early:
                message = "missing request body"
            raise Refusal(400, message, is_early=is_early) from error
        if value is not None and not isinstance(value, dict):
            message = f"json: cannot unmarshal {kind_of(value)} into Go value of type api.{struct}"
            raise Refusal(400, message, is_early=is_early)
        return cls(value or {}, struct, is_early)

    def any(self, name: str) -> Any:
        return self.values.get(name)

    def text(self, name: str) -> str:
        return self._typed(name, str, "string") or ""

    def integer(self, name: str) -> int:
        value = self._typed(name, int, "int")
        if isinstance(value, bool) or (value is not None and value not in _INT64):
            raise self._refusal(value, name, "int")
        return value or 0

    def boolean(self, name: str) -> bool | None:
        value: bool | None = self._typed(name, bool, "bool")
        return value

    def array(self, name: str) -> list[Any]:
        return self._typed(name, list, "[]api.Message" if name == "messages" else "api.Tools") or []

    def mapping(self, name: str) -> dict[str, Any]:
        return self._typed(name, dict, "map[string]interface {}") or {}

    def duration(self, name: str) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            return _seconds(value) if len(value) > _USUAL_DURATION else _usual_seconds(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            go_type = {"bool": "bool", "array": "[]interface {}"}.get(
                kind_of(value), "map[string]interface {}"
            )
            raise Refusal(400, f"Unsupported type: '{go_type}'", is_early=self.is_early)
        return float("inf") if value < 0 else float(value)

    def _typed(self, name: str, kind: type, go_type: str) -> Any:
        value = self.values.get(name)
        if value is not None and not isinstance(value, kind):
            raise self._refusal(value, name, go_type)
        return value

    def _refusal(self, value: object, name: str, go_type: str) -> Refusal:
        message = _mismatch(value, f"{self.struct}.{name}", go_type)
        return Refusal(400, message, is_early=self.is_early)


def _mismatch(value: object, place: str, go_type: str) -> str:
    kind = kind_of(value)
    if kind == "number" and go_type == "int":
        kind = f"number {value!r:.40}"
    return f"json: cannot unmarshal {kind} into Go struct field {place} of type {go_type}"


def _seconds(text: str) -> float:
    """A duration in Go's notation ("5m", "1h30m", "-1s"), in seconds; negative means for ever."""
    try:
        nanoseconds = parse_duration(text)
    except InvalidInput as error:
        raise Refusal(400, str(error)) from error
    return float("inf") if nanoseconds < 0 else nanoseconds / 1e9


_USUAL_DURATION = 16  # characters; longer ones are not cached, so that no client can fill memory
_usual_seconds = lru_cache(maxsize=64)(_seconds)
