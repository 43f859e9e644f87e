"""Base classes for compatible APIs: their requests to Ollama's, Ollama's answers to theirs.

`Question` is a parsed request: it holds the request to send to a node, and converts the node's
answer to the client's format, whole or as a stream of server-sent events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from binascii import Error, a2b_base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from aiosollol.errors import InvalidInput
from aiosollol.wire.json_fields import early
from aiosollol.wire.ollama.client import LineSplitter, dump_whole, loads, shown
from aiosollol.wire.ollama.embeddings import MOST_TOKENS
from aiosollol.wire.ollama.server_requests import Refusal, check_model_name
from aiosollol.wire.ollama.server_responses import HttpResponse

EVENT_STREAM = "text/event-stream"

CUT_OFF = "the model's answer was cut off"


@dataclass(frozen=True, slots=True)
class Stamp:
    """Identity of an answer.

    unique: part of every id in the answer, unique per request: letters, digits and "_".
    created: when the request arrived, in seconds since 1970.
    """

    unique: str
    created: int


class Question(ABC):
    """A request to another API, converted to Ollama's.

    path: "/api/chat" or "/api/generate".
    payload: the request to send there; `body` is the same as bytes.
    can_drop_think: whether to retry without `think` if the model cannot think.

    Raises Refusal for a payload that JSON cannot represent.
    """

    can_drop_think = False

    def __init__(self, path: str, payload: dict[str, Any]) -> None:
        self.path = path
        self.payload = payload
        self.model: str = payload["model"]
        self.stream: bool = payload["stream"]
        try:
            self.body = dump_whole(payload)
        except InvalidInput as error:
            raise early(str(error)) from error
        if not self.model:
            raise Refusal(400, "model is required")
        check_model_name(self.model)

    def __repr__(self) -> str:
        streamed = ", streamed" if self.stream else ""
        return f"<{type(self).__name__} to {self.path} of {self.model!r}{streamed}>"

    @abstractmethod
    def answer(self, reply: Mapping[str, Any], stamp: Stamp) -> HttpResponse:
        """The complete answer to the client, from Ollama's. Raises Refusal with status 502."""

    @abstractmethod
    def events(self, stamp: Stamp) -> Events:
        """A converter from Ollama's stream to the client's."""


class Events(ABC):
    """Converts the parts of a streamed answer to server-sent events.

    is_over: whether the last event was written: the end or an error. Later input is dropped.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._lines = LineSplitter()

    def feed(self, piece: bytes | Mapping[str, Any]) -> bytes:
        """The events of `piece`: bytes of the node's stream, split anywhere, or one part."""
        if isinstance(piece, bytes):
            return b"".join([self._line(line) for line in self._lines.feed(piece)])
        return self._take(piece)

    def finish(self) -> bytes:
        """The events at the end of the node's stream: an error if it was cut off."""
        rest = self._lines.rest()
        self._lines = LineSplitter()
        events = b""
        if rest and not self.is_over:
            try:  # the last line may lack a line end
                loads(rest)
            except orjson.JSONDecodeError:
                return self.fail(CUT_OFF)
            events = self._line(rest)
        return events if self.is_over else events + self.fail(CUT_OFF)

    def fail(self, message: str, status: int = 500) -> bytes:
        """The events that report an error and end the stream; none if it is already over.

        status: the HTTP status of the same error outside a stream.
        """
        if self.is_over:
            return b""
        self.is_over = True
        return self._error(message, status)

    def _line(self, line: bytes) -> bytes:
        try:
            part = loads(line)
        except orjson.JSONDecodeError:
            part = None
        if not isinstance(part, dict):
            return self.fail(f"the node answered {shown(line)}, which is not a JSON object")
        return self._take(part)

    def _take(self, part: Mapping[str, Any]) -> bytes:
        if self.is_over:
            return b""
        if "error" in part:
            error = part["error"]
            return self.fail(error if isinstance(error, str) else str(error)[:200])
        try:
            events = self._part(part)
        except Refusal as refusal:
            return self.fail(refusal.message, refusal.status)
        if part.get("done") is True:
            self.is_over = True
        return events

    @abstractmethod
    def _part(self, part: Mapping[str, Any]) -> bytes:
        """The events of a part that is not an error. Raises Refusal if it cannot be converted."""

    @abstractmethod
    def _error(self, message: str, status: int) -> bytes:
        """The events of an error."""


# ---- reading untrusted answers of nodes


def message_of(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message of a chat answer; empty if there is none."""
    message = reply.get("message")
    return message if isinstance(message, Mapping) else {}


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """A text, "" if there is none."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def count_of(fields: Mapping[str, Any], name: str) -> int:
    """A count, 0 if there is none or an impossible one."""
    value = fields.get(name)
    return value if isinstance(value, int) and 0 <= value < MOST_TOKENS else 0


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call by a model; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


def calls_of(message: Mapping[str, Any], unique: str, first: int = 0) -> list[Call]:
    """The tool calls of a message. Raises Refusal.

    Calls without an id, from older servers, get one, numbered from `first`.
    """
    calls = message.get("tool_calls")
    if not isinstance(calls, Iterable) or isinstance(calls, str | bytes | Mapping):
        return []
    return [
        _call(call, f"call_{unique}_{number}")
        for number, call in enumerate(calls, first)
        if isinstance(call, Mapping)
    ]


def _call(call: Mapping[str, Any], default_id: str) -> Call:
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    name = text_of(function, "name")
    return Call(text_of(call, "id") or default_id, name, dumps(arguments).decode())


def dumps(value: Any, option: int = 0) -> bytes:
    """`value` as JSON. Raises Refusal for values that JSON cannot represent."""
    try:
        return orjson.dumps(value, default=_as_dict, option=option)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refusal(502, f"the node's answer cannot be passed on: {error}") from error


def _as_dict(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError


_PREFIXES = (
    "data:;base64,",
    "data:image/jpeg;base64,",
    "data:image/jpg;base64,",
    "data:image/png;base64,",
    "data:image/webp;base64,",
)


def from_url(url: str) -> str:
    """The image in a data URL. Raises Refusal, also for URLs that would have to be fetched."""
    if url.startswith(("http://", "https://")):
        raise early(
            "image URLs are not currently supported, please use base64 encoded data instead"
        )
    for prefix in _PREFIXES:
        if url.startswith(prefix):
            return checked(url[len(prefix) :], "invalid image input")
    raise early("invalid image input")


def checked(data: str, problem: str) -> str:
    """`data` if it is padded base64 of the standard alphabet; else raises Refusal(`problem`)."""
    if "\n" in data or "\r" in data:  # Go ignores line ends
        data = data.replace("\n", "").replace("\r", "")
    try:
        a2b_base64(data, strict_mode=True)
    except (Error, ValueError) as error:
        raise early(problem) from error
    return data
