"""Requests to nodes, serialised once for all their attempts."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, NamedTuple

from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.timings import ServerTimings
from aiosollol.live.streaming import OnEnd, Part, ReplyStream, timings_of, tokens_of
from aiosollol.wire.ollama.client import dump
from aiosollol.wire.ollama.embeddings import NATIVE_PATH

GENERATE_PATH = "/api/generate"


class EmbedCall(NamedTuple):
    """An embedding request, serialised once for all its attempts.

    Several attempts may run at once, so a call is immutable: what differs between them is an
    argument of the methods of `NodeClient`.

    body: its bytes.
    fits_base64: whether the endpoint that supports base64 would ignore none of its fields.
    tokens: estimated.
    dimensions: as requested by the caller.
    options: see `core.request.reload_key`.
    loading: the fields of the body about loading the model.
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
        """The request for the router, as far as the call knows it."""
        return RouteRequest(self.model, self.tokens)

    def load_request(self) -> tuple[str, bytes]:
        """Path and body of a request that loads the model for this call and computes nothing."""
        return NATIVE_PATH, dump({"model": self.model, "input": [], **_loading(self.loading)})


class TalkCall(NamedTuple, Generic[Part]):
    """A chat or generate, serialised. The other fields are those of `EmbedCall`.

    kind: "chat" or "generate", for costs and spans; "embed" if one text is forwarded.
    load: decodes the answer; takes the node's name and the bytes.
    max_output: see `RouteRequest`.
    """

    path: str
    kind: str
    model: str
    body: bytes
    load: Callable[[str, bytes], Part]
    tokens: float
    options: object = None
    loading: Mapping[str, Any] | None = None
    dimensions: int | None = None
    max_output: int = 0

    def request(self) -> RouteRequest:
        """The request for the router, as far as the call knows it."""
        return RouteRequest(self.model, self.tokens, self.kind, max_output=self.max_output)

    def check(self, part: Part, dim: int) -> None:
        """Check the vector in an answer, of which `dim` numbers are due; 0 if that is unknown."""

    def stream(
        self,
        node: str,
        response: AbstractAsyncContextManager[AsyncIterator[bytes]],
        on_end: OnEnd[Part],
    ) -> ReplyStream[Part]:
        """Its streamed answer. The arguments are those of `ReplyStream`."""
        return ReplyStream(node, response, self.load, on_end)

    def tokens_of(self, part: Part) -> int:
        """Tokens of prompt and answer, as counted by the server; 0 if it does not say."""
        return tokens_of(part)

    def timings_of(self, part: Part) -> ServerTimings | None:
        """The server's timings of a whole answer; None if it does not report them."""
        return timings_of(part)

    def load_request(self) -> tuple[str, bytes]:
        """Path and body of a request that loads the model for this call and computes nothing."""
        fields = {"model": self.model, "stream": False, **_loading(self.loading)}
        return GENERATE_PATH, dump(fields)


def _loading(asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a load request about loading the model."""
    fields = dict(asked or {})
    # keep_alive of 0 belongs to the request itself: here it would unload the model.
    if not re.search("[1-9]", str(fields.get("keep_alive", 1))):
        del fields["keep_alive"]
    return fields
