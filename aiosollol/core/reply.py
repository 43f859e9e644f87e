"""Answers of chat and generate: Ollama's fields, as attributes and by key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from aiosollol.core.report import ReplyReport
    from aiosollol.errors import SollolError


class Record(Mapping[str, Any]):
    """One JSON object of an answer: ``record["done"]`` and ``record.done`` are the same.

    Nested objects are records too, including those in lists.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __getitem__(self, key: str) -> Any:
        return _readable(self._fields[key])

    def __getattr__(self, name: str) -> Any:
        try:
            value = self._fields[name]
        except KeyError:
            raise AttributeError(f"the answer has no field {name!r}") from None
        return value if type(value) is str else _readable(value)

    def get(self, key: str, default: Any = None) -> Any:
        """The field with that name, or `default`."""
        return _readable(self._fields.get(key, default))

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self._fields)!r})"

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return type(self), (dict(self._fields),)


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return Record(value)
    if isinstance(value, list):
        return [_readable(item) for item in value]
    return value


class ChatReply(Record):
    """A chat answer, or one part of a streamed one.

    It has ``message`` (with ``role``, ``content``, and optionally ``thinking``, ``tool_calls``),
    ``model`` and ``done``; the last part also ``done_reason`` and the server's counts and
    durations (ns). ``str(reply)`` is the text.
    """

    __slots__ = ()

    def __str__(self) -> str:
        message = self._fields.get("message")
        content = message.get("content") if isinstance(message, Mapping) else None
        return content if isinstance(content, str) else ""


class GeneratedText(str):
    """Generated text, or one part of a streamed one: a string with its full answer.

    answer: the whole JSON object, with ``response``, ``done``, ``context`` and the metrics.
    """

    __slots__ = ("answer",)

    answer: Record

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> GeneratedText:
        """The text of an answer of ``/api/generate``."""
        response = fields.get("response")
        text = cls(response if isinstance(response, str) else "")
        text.answer = Record(fields)
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return GeneratedText.of, (dict(self.answer),)

    @property
    def response(self) -> str:
        """The text, under Ollama's name."""
        return str(self)


_Reply = TypeVar("_Reply", bound="ChatReply | GeneratedText")


class Replies(list["_Reply | None"]):
    """The replies to many prompts, in their order: a list, with None where there is no reply.

    errors: errors by position, of the prompts without a reply.
    report: how many were answered, by which nodes, and at which rate.
    """

    def __init__(
        self,
        replies: Iterable[_Reply | None],
        errors: Mapping[int, SollolError],
        report: ReplyReport,
    ) -> None:
        super().__init__(replies)
        self.errors = dict(errors)
        self.report = report
