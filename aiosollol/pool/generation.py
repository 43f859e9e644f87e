"""`Generation`: chat and generate. Turns arguments into requests for the live path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.core.request import (
    check_model,
    check_options,
    check_text,
    check_timeout,
    loading_of,
    most_output,
    reload_key,
)
from aiosollol.core.routing.wait_queue import USUAL, check_priority
from aiosollol.core.scheduling.cost import CHARACTERS_PER_TOKEN
from aiosollol.errors import InvalidInput
from aiosollol.live.calls import TalkCall
from aiosollol.live.router import CallOptions, RequestRouter
from aiosollol.live.streaming import Part, ReplyStream
from aiosollol.wire.ollama import chat as chat_wire
from aiosollol.wire.ollama.client import dump


class Generation:
    """chat and generate on the nodes of a pool: see `OllamaPool.chat` and `generate`.

    live: sends the requests.
    timeout: default seconds for a request.
    check_open: raises PoolClosed.
    """

    def __init__(self, live: RequestRouter, timeout: float, check_open: Callable[[], None]) -> None:
        self._live = live
        self._timeout = timeout
        self._check_open = check_open

    async def chat(
        self,
        model: str,
        messages: Iterable[Any] | None,
        *,
        stream: bool = False,
        tools: Iterable[Any] | None = None,
        think: bool | str | None = None,
        format: str | Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
    ) -> ChatReply | ReplyStream[ChatReply]:
        """A chat answer, or with `stream` an iterator over its parts."""
        payload = {
            "messages": chat_wire.messages_to_send(messages),
            "tools": chat_wire.tools_to_send(tools),
            "think": think,
            "format": format,
            "options": options,
            "keep_alive": keep_alive,
        }
        wishes = self._wishes(timeout, priority, sticky)
        call = self._talk("chat", model, payload, chat_wire.load_chat, stream)
        if stream:
            return await self._live.open_stream(call, wishes)
        return await self._live.converse(call, wishes)

    async def generate(
        self,
        model: str,
        prompt: str,
        suffix: str | None,
        *,
        stream: bool = False,
        system: str | None = None,
        template: str | None = None,
        context: Sequence[int] | None = None,
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
        """Generated text, or with `stream` an iterator over its parts."""
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
        call = self._talk("generate", model, payload, chat_wire.load_text, stream)
        if stream:
            return await self._live.open_stream(call, wishes)
        return await self._live.converse(call, wishes)

    def _talk(
        self,
        kind: Literal["chat", "generate"],
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
            f"/api/{kind}",
            kind,
            model,
            body,
            load,
            tokens,
            reload_key(options),
            loading_of(options, payload["keep_alive"]),
            max_output=most_output(options),
        )

    def _wishes(self, timeout: float | None, priority: int, sticky: str | None) -> CallOptions:
        if sticky is not None and not isinstance(sticky, str):
            raise InvalidInput(f"sticky must be the name of a conversation, not {sticky!r}")
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        return CallOptions(seconds, check_priority(priority), sticky, timeout is None)
