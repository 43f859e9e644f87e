"""`Generation`: chat and generate. Turns arguments into requests for the live path."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, Unpack
from weakref import WeakSet

from aiosollol.batch.prompts import Answered, PromptStream
from aiosollol.cluster.eligibility import Eligibility
from aiosollol.core.arguments import ChatFields, GenerateFields, OnError
from aiosollol.core.reply import ChatReply, GeneratedText, Replies
from aiosollol.core.request import (
    check_model,
    check_on_error,
    check_options,
    check_text,
    check_timeout,
    loading_of,
    most_output,
    reload_key,
)
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.routing.wait_queue import LOW, USUAL, check_priority
from aiosollol.core.scheduling.cost import CHARACTERS_PER_TOKEN
from aiosollol.errors import InvalidInput, PoolClosed, ReplyBatchError
from aiosollol.live.calls import TalkCall
from aiosollol.live.router import CallOptions, RequestRouter
from aiosollol.live.streaming import Part, ReplyStream
from aiosollol.wire.ollama import chat as chat_wire
from aiosollol.wire.ollama.client import dump

TalkKind: TypeAlias = Literal["chat", "generate"]

_FIELDS: Mapping[TalkKind, frozenset[str]] = {
    "chat": frozenset({"messages", *ChatFields.__annotations__}),
    "generate": frozenset({"prompt", "suffix", *GenerateFields.__annotations__}),
}


class Generation:
    """chat and generate on the nodes of a pool: see `OllamaPool.chat`, `generate` and `map`.

    live: sends the requests.
    eligibility: says which nodes have a model.
    clock: seconds.
    timeout: default seconds for a request.
    check_open: raises PoolClosed.
    """

    def __init__(
        self,
        live: RequestRouter,
        eligibility: Eligibility,
        clock: Callable[[], float],
        timeout: float,
        check_open: Callable[[], None],
    ) -> None:
        self._live = live
        self._eligibility = eligibility
        self._clock = clock
        self._timeout = timeout
        self._check_open = check_open
        # Weak: a stream that its reader drops without closing it is not kept.
        self._maps: WeakSet[PromptStream[Any]] = WeakSet()

    async def chat(
        self,
        model: str,
        messages: Iterable[Any] | None,
        *,
        stream: bool = False,
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
        **fields: Unpack[ChatFields],
    ) -> ChatReply | ReplyStream[ChatReply]:
        """A chat answer, or with `stream` an iterator over its parts."""
        wishes = self._wishes(timeout, priority, sticky)
        call = self._chat_call(model, messages, stream=stream, **fields)
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
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
        **fields: Unpack[GenerateFields],
    ) -> GeneratedText | ReplyStream[GeneratedText]:
        """Generated text, or with `stream` an iterator over its parts."""
        wishes = self._wishes(timeout, priority, sticky)
        call = self._generate_call(model, prompt, suffix, stream=stream, **fields)
        if stream:
            return await self._live.open_stream(call, wishes)
        return await self._live.converse(call, wishes)

    def map(
        self,
        model: str,
        prompts: Iterable[Any] | AsyncIterable[Any],
        *,
        kind: TalkKind = "generate",
        ordered: bool = True,
        on_error: OnError = "raise",
        on_progress: Callable[[int, int | None], object] | None = None,
        timeout: float | None = None,
        priority: int = LOW,
        **fields: Any,
    ) -> PromptStream[Any]:
        """The replies to many prompts, as an async iterator."""
        if kind not in ("chat", "generate"):
            raise InvalidInput(f"kind must be 'chat' or 'generate', not {kind!r}")
        check_on_error(on_error)
        make = partial(self._prompt_call, kind, model, fields)
        make("")  # raises for what is wrong with the fields
        total = len(prompts) if isinstance(prompts, Sequence) else None
        stream: PromptStream[Any] = PromptStream(
            prompts,
            partial(self._ask, make, self._wishes(timeout, priority)),
            partial(self._window, RouteRequest(model, 0.0, kind)),
            self._clock,
            is_ordered=ordered,
            stops_at_error=on_error == "raise",
            on_progress=None if on_progress is None else lambda done: on_progress(done, total),
        )
        self._maps.add(stream)
        return stream

    async def batch(
        self,
        model: str,
        prompts: Iterable[Any] | AsyncIterable[Any],
        kind: TalkKind,
        *,
        on_error: OnError = "raise",
        **given: Any,
    ) -> Replies[Any]:
        """The replies to all prompts, in their order. Raises ReplyBatchError."""
        async with self.map(model, prompts, kind=kind, on_error="return", **given) as stream:
            received = [reply async for reply in stream]
        replies = Replies(received, stream.errors, stream.report)
        if replies.errors and on_error == "raise":
            raise ReplyBatchError(replies)
        return replies

    async def aclose(self) -> None:
        """End open streams of prompts: their readers raise PoolClosed."""
        for stream in list(self._maps):
            await stream.aclose(PoolClosed("the pool was closed during this stream"))

    async def _ask(
        self, make: Callable[[object], TalkCall[Part]], wishes: CallOptions, prompt: object
    ) -> Answered[Part]:
        call = make(prompt)
        answered_by = ""

        def load(node: str, body: bytes) -> Part:
            nonlocal answered_by
            part = call.load(node, body)
            answered_by = node
            return part

        reply = await self._live.converse(call._replace(load=load), wishes)
        return Answered(reply, answered_by)

    def _window(self, request: RouteRequest) -> int:
        """How many requests the nodes can work on, and one for each to go on with."""
        nodes = self._eligibility.ready(request.model)
        return sum(int(min(node.workload(request).allowed, node.cap)) + 1 for node in nodes)

    # Requests.

    def _prompt_call(
        self, kind: TalkKind, model: str, fields: Mapping[str, Any], prompt: object
    ) -> TalkCall[Any]:
        """The request for one of many prompts. fields: those of all of them."""
        merged = {**fields, **_prompt_fields(kind, prompt)}
        if kind == "chat":
            return self._chat_call(model, **merged)
        return self._generate_call(model, **merged)

    def _chat_call(
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
    ) -> TalkCall[ChatReply]:
        payload = {
            "messages": chat_wire.messages_to_send(messages),
            "tools": chat_wire.tools_to_send(tools),
            "think": think,
            "format": format,
            "options": options,
            "keep_alive": keep_alive,
        }
        return self._talk("chat", model, payload, chat_wire.load_chat, stream)

    def _generate_call(
        self,
        model: str,
        prompt: str,
        suffix: str | None = None,
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
    ) -> TalkCall[GeneratedText]:
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
        return self._talk("generate", model, payload, chat_wire.load_text, stream)

    def _talk(
        self,
        kind: TalkKind,
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

    def _wishes(
        self, timeout: float | None, priority: int, sticky: str | None = None
    ) -> CallOptions:
        if sticky is not None and not isinstance(sticky, str):
            raise InvalidInput(f"sticky must be the name of a conversation, not {sticky!r}")
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        return CallOptions(seconds, check_priority(priority), sticky, timeout is None)


def _prompt_fields(kind: TalkKind, prompt: object) -> Mapping[str, Any]:
    """The fields of a request for one of many prompts. Raises InvalidInput."""
    name = "messages" if kind == "chat" else "prompt"
    if isinstance(prompt, Mapping):
        if name not in prompt:
            raise InvalidInput(f"a prompt that is a mapping needs {name!r}")
        if unknown := prompt.keys() - _FIELDS[kind]:
            known = ", ".join(sorted(_FIELDS[kind]))
            raise InvalidInput(f"a prompt has no {min(map(str, unknown))!r}: it can have {known}")
        return prompt
    if isinstance(prompt, str):
        return {name: [{"role": "user", "content": prompt}] if kind == "chat" else prompt}
    if kind == "chat" and isinstance(prompt, Sequence):
        return {"messages": prompt}
    due = "a str, a list of messages" if kind == "chat" else "a str"
    raise InvalidInput(f"a prompt must be {due} or a mapping, not {type(prompt).__name__}")
