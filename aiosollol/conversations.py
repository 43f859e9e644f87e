"""chat and generate: the conversational half of `OllamaPool`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

from aiosollol.core.cost import CHARACTERS_PER_TOKEN
from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.core.request import (
    check_model,
    check_options,
    check_text,
    check_timeout,
    loading_of,
    reload_key,
)
from aiosollol.core.waiting import USUAL, check_priority
from aiosollol.errors import InvalidInput
from aiosollol.exchange import TalkCall
from aiosollol.live import LiveCalls, Wishes
from aiosollol.streams import Part, ReplyStream
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
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
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
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
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
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
    ) -> ChatReply | ReplyStream[ChatReply]:
        """A chat answer, or with ``stream=True`` an async iterator over its parts.

        Arguments are those of Ollama's ``/api/chat``, and: timeout, seconds for all of it;
        priority, 1 to 10, where 10 goes first if requests have to wait for a node; sticky, the name
        of a conversation, which stays on the node that has its prompt cache unless that is much
        busier than others.

        Another node is asked if one fails before its first part. Raises InvalidInput,
        ModelNotFound, NoNodeAvailable, PoolSaturated, or BadRequest. If a stream breaks off or the
        node reports an error in it, the iteration raises StreamCutOff, which says how many parts
        were delivered; its cause is what happened.
        """
        payload = {
            "messages": chat_wire.messages_to_send(messages),
            "tools": chat_wire.tools_to_send(tools),
            "think": think,
            "format": format,
            "options": options,
            "keep_alive": keep_alive,
        }
        wishes = self._wishes(timeout, priority, sticky)
        call = self._talk("/api/chat", model, payload, chat_wire.load_chat, stream)
        if stream:
            return await self._live.open_stream(call, wishes)
        return await self._live.converse(call, wishes)

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
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
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
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
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
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
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
        wishes = self._wishes(timeout, priority, sticky)
        call = self._talk("/api/generate", model, payload, chat_wire.load_text, stream)
        if stream:
            return await self._live.open_stream(call, wishes)
        return await self._live.converse(call, wishes)

    def _talk(
        self,
        path: str,
        model: str,
        payload: Mapping[str, Any],
        load: Callable[[str, bytes], Part],
        stream: bool,
    ) -> TalkCall[Part]:
        """A request to chat or generate. Raises PoolClosed, InvalidInput."""
        self._check_open()
        check_model(model)
        options = payload["options"]
        check_options(options, payload["keep_alive"])
        body = dump({"model": model, "stream": stream, **payload})
        tokens = len(body) / CHARACTERS_PER_TOKEN
        return TalkCall(
            path,
            model,
            body,
            load,
            tokens,
            self._chat_timeout,
            reload_key(options),
            loading_of(options, payload["keep_alive"]),
        )

    def _wishes(self, timeout: float | None, priority: int, sticky: str | None) -> Wishes:
        if sticky is not None and not isinstance(sticky, str):
            raise InvalidInput(f"sticky must be the name of a conversation, not {sticky!r}")
        seconds = self._chat_timeout if timeout is None else check_timeout(timeout)
        return Wishes(seconds, check_priority(priority), sticky, timeout is None)
