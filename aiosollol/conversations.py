"""chat and generate: the conversational half of `OllamaPool`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, overload

from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.core.request import check_model, check_options, check_text
from aiosollol.live import LiveCalls
from aiosollol.streams import ReplyStream
from aiosollol.wire import chat as chat_wire
from aiosollol.wire.ollama import dump


class Conversations:
    """Base of the pool: what it needs is set by the pool. Not meant to be used by itself."""

    _live: LiveCalls
    _chat_timeout: float

    def _check_open(self) -> None:
        raise NotImplementedError

    @overload
    async def chat(
        self,
        model: str,
        messages: Iterable[Any] | None = None,
        *,
        tools: Iterable[Any] | None = None,
        stream: Literal[False] = False,
        think: bool | str | None = None,
        format: str | Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
    ) -> ChatReply: ...
    @overload
    async def chat(
        self,
        model: str,
        messages: Iterable[Any] | None = None,
        *,
        tools: Iterable[Any] | None = None,
        stream: Literal[True],
        think: bool | str | None = None,
        format: str | Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
    ) -> ReplyStream[ChatReply]: ...
    async def chat(
        self,
        model: str,
        messages: Iterable[Any] | None = None,
        *,
        tools: Iterable[Any] | None = None,
        stream: bool = False,
        think: bool | str | None = None,
        format: str | Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
    ) -> ChatReply | ReplyStream[ChatReply]:
        """A chat answer, or with ``stream=True`` an async iterator over its parts.

        Arguments are those of Ollama's ``/api/chat``. Another node is asked if one fails before
        its first part. Raises InvalidInput, ModelNotFound, NoNodeAvailable, or BadRequest; the
        iteration raises NodeError if the stream is cut off or reports an error.
        """
        payload = {
            "messages": chat_wire.messages_to_send(messages),
            "tools": chat_wire.tools_to_send(tools),
            "think": think,
            "format": format,
            "options": options,
            "keep_alive": keep_alive,
        }
        body = self._conversation(model, payload, stream)
        send = self._live.open_stream if stream else self._live.converse
        return await send("/api/chat", model, body, chat_wire.load_chat, self._chat_timeout)

    @overload
    async def generate(
        self,
        model: str,
        prompt: str = "",
        suffix: str | None = None,
        *,
        system: str | None = None,
        template: str | None = None,
        context: Sequence[int] | None = None,
        stream: Literal[False] = False,
        think: bool | str | None = None,
        raw: bool | None = None,
        format: str | Mapping[str, Any] | None = None,
        images: Sequence[str | bytes] | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
    ) -> GeneratedText: ...
    @overload
    async def generate(
        self,
        model: str,
        prompt: str = "",
        suffix: str | None = None,
        *,
        system: str | None = None,
        template: str | None = None,
        context: Sequence[int] | None = None,
        stream: Literal[True],
        think: bool | str | None = None,
        raw: bool | None = None,
        format: str | Mapping[str, Any] | None = None,
        images: Sequence[str | bytes] | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
    ) -> ReplyStream[GeneratedText]: ...
    async def generate(
        self,
        model: str,
        prompt: str = "",
        suffix: str | None = None,
        *,
        system: str | None = None,
        template: str | None = None,
        context: Sequence[int] | None = None,
        stream: bool = False,
        think: bool | str | None = None,
        raw: bool | None = None,
        format: str | Mapping[str, Any] | None = None,
        images: Sequence[str | bytes] | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
    ) -> GeneratedText | ReplyStream[GeneratedText]:
        """Generated text, or with ``stream=True`` an async iterator over its parts.

        The text is a string; its ``answer`` holds what else the server said. Arguments are those
        of Ollama's ``/api/generate``; failing over and errors are as in `chat`.
        """
        check_text(prompt)
        payload = {
            "prompt": prompt,
            "suffix": suffix,
            "system": system,
            "template": template,
            "context": context,
            "think": think,
            "raw": raw,
            "format": format,
            "images": None if images is None else chat_wire.images_to_send(images),
            "options": options,
            "keep_alive": keep_alive,
        }
        body = self._conversation(model, payload, stream)
        send = self._live.open_stream if stream else self._live.converse
        return await send("/api/generate", model, body, chat_wire.load_text, self._chat_timeout)

    def _conversation(self, model: str, payload: Mapping[str, Any], stream: bool) -> bytes:
        """The body of a request to chat or generate. Raises PoolClosed, InvalidInput."""
        self._check_open()
        check_model(model)
        check_options(payload["options"], payload["keep_alive"])
        return dump({"model": model, "stream": stream, **payload})
