"""Requests to nodes, serialised once for however many attempts they take."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, NamedTuple

from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.live.streaming import OnEnd, Part, ReplyStream, tokens_of
from aiosollol.wire.ollama.client import dump
from aiosollol.wire.ollama.embeddings import NATIVE_PATH

GENERATE_PATH = "/api/generate"


class EmbedCall(NamedTuple):
    """A request, serialised once for however many attempts it takes.

    Several attempts may be under way at once, so a call never changes: what differs between them is
    an argument of the methods of `NodeClient`.

    body: its bytes. fits_base64: whether the endpoint that knows base64 would drop nothing of it.
    tokens: estimated. dimensions: as the caller asks for them. options: see
    `core.request.reload_key`. loading: what the body says of how the model is to be loaded.
    """

    model: str
    texts: Sequence[str]
    body: bytes
    fits_base64: bool
    tokens: float
    dimensions: int | None = None
    options: object = None
    loading: Mapping[str, Any] | None = None

    def request(self) -> RouteRequest:
        """What is to be routed, as far as the call itself says."""
        return RouteRequest(self.model, self.tokens)

    def load_request(self) -> tuple[str, bytes]:
        """Path and body of a request that loads the model for this one and computes nothing."""
        return NATIVE_PATH, dump({"model": self.model, "input": [], **_loading(self.loading)})


class TalkCall(NamedTuple, Generic[Part]):
    """A chat or generate, serialised. Otherwise as `EmbedCall`.

    kind: "chat" or "generate", for costs and spans. load: reads its answer.
    """

    path: str
    kind: str
    model: str
    body: bytes
    load: Callable[[str, bytes], Part]
    tokens: float
    options: object = None
    loading: Mapping[str, Any] | None = None

    def request(self) -> RouteRequest:
        """What is to be routed, as far as the call itself says."""
        return RouteRequest(self.model, self.tokens, self.kind)

    def stream(
        self,
        node: str,
        response: AbstractAsyncContextManager[AsyncIterator[bytes]],
        on_end: OnEnd[Part],
    ) -> ReplyStream[Part]:
        """Its answer, where that is streamed. The arguments are those of `ReplyStream`."""
        return ReplyStream(node, response, self.load, on_end)

    def tokens_of(self, part: Part) -> int:
        """Tokens of prompt and answer, as the server counted them; 0 where it does not say."""
        return tokens_of(part)

    def load_request(self) -> tuple[str, bytes]:
        """Path and body of a request that loads the model for this one and computes nothing."""
        fields = {"model": self.model, "stream": False, **_loading(self.loading)}
        return GENERATE_PATH, dump(fields)


def _loading(asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a request that only loads says of how to do that."""
    fields = dict(asked or {})
    # To keep it for no time is for the request itself to say: here it would unload the model.
    if not re.search("[1-9]", str(fields.get("keep_alive", 1))):
        del fields["keep_alive"]
    return fields
