"""`GatewayAccess`: the API of `OllamaPool` for a gateway, which forwards requests unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Unpack, cast

from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.state import ClusterState
from aiosollol.core.arguments import LiveArguments
from aiosollol.core.request import (
    check_timeout,
    loading_of,
    most_output,
    plain_settings,
    reload_key,
)
from aiosollol.core.routing.explain import Setback, after
from aiosollol.core.routing.wait_queue import USUAL, check_priority
from aiosollol.core.scheduling.cost import CHARACTERS_PER_TOKEN
from aiosollol.errors import ModelMissing, NodeError, NodeUnreachable, NoNodeAvailable
from aiosollol.live.relay import (
    RelayCall,
    Relayed,
    RelayStream,
    read_talk,
    read_vector,
    read_vectors_of_one,
)
from aiosollol.live.router import CallOptions, RequestRouter
from aiosollol.pool.embedding import Embedder
from aiosollol.ports import Tracing, Transport

_READERS = {"/api/embed": read_vectors_of_one, "/api/embeddings": read_vector}

Kind = Literal["embed", "chat", "generate", "load"]


class GatewayAccess:
    """What a gateway needs of its pool: see `OllamaPool.gateway_access`. Not for other programs.

    live: sends requests, as for the pool's own calls.
    transport_of: the transport to a node, by name.
    tracing: traces the requests.
    strategy: the name of the routing strategy.
    embed_timeout, chat_timeout: default seconds for a request.
    wait_timeout: seconds that a request waits for a slot.
    check_open: raises PoolClosed.
    embedder: embeds what several clients ask for; `embed_gathered` is its `gathered`.
    calls: counters of the pool's calls.
    """

    def __init__(
        self,
        cluster: ClusterState,
        eligibility: Eligibility,
        live: RequestRouter,
        transport_of: Callable[[str], Transport],
        tracing: Tracing,
        strategy: str,
        embed_timeout: float,
        chat_timeout: float,
        wait_timeout: float,
        check_open: Callable[[], None],
        embedder: Embedder,
    ) -> None:
        self.tracing = tracing
        self.embed_gathered = embedder.gathered
        self._truncations = embedder.truncations
        self.calls = live.calls
        self.wait_timeout = wait_timeout
        self._cluster = cluster
        self._eligibility = eligibility
        self._live = live
        self._transport_of = transport_of
        self._strategy = strategy
        self._embed_timeout = embed_timeout
        self._chat_timeout = chat_timeout
        self._check_open = check_open

    async def forward(
        self,
        kind: Kind,
        path: str,
        model: str,
        body: bytes,
        *,
        texts: Sequence[str] = (),
        dimensions: int | None = None,
        **arguments: Unpack[LiveArguments],
    ) -> Relayed:
        """The whole answer to a request with this `body`, as the node wrote it.

        Routed like `embed`, `chat` or `generate`.

        kind: of request; "load" if it computes nothing.
        path: of the endpoint.
        texts: to be embedded, one text or none.
        dimensions, options, keep_alive: those in `body`.
        timeout, priority, sticky: as for `OllamaPool.chat`.

        Raises ModelNotFound, NoNodeAvailable, PoolSaturated, BadRequest, PoolClosed.
        """
        call, wishes = self._call(kind, path, model, body, texts, dimensions, **arguments)
        setbacks: list[Setback] = []
        relayed: Relayed = await self._live.converse(call, wishes, setbacks)
        if texts and relayed.node in self._cluster:
            self._cluster[relayed.node].count_vectors(1)
            settings = plain_settings(model)
            self._truncations.look(settings, texts, relayed.node, relayed.tokens)
        return relayed._replace(setbacks=tuple(setbacks)) if setbacks else relayed

    async def forward_stream(
        self,
        kind: Kind,
        path: str,
        model: str,
        body: bytes,
        **arguments: Unpack[LiveArguments],
    ) -> RelayStream:
        """Like `forward`, for a streamed answer. Returns when its first line has arrived."""
        call, wishes = self._call(kind, path, model, body, (), None, **arguments)
        setbacks: list[Setback] = []
        # A `RelayCall` always gives a `RelayStream`.
        stream = cast(RelayStream, await self._live.open_stream(call, wishes, setbacks))
        stream.setbacks = tuple(setbacks)
        return stream

    def dim_of(self, model: str, dimensions: int) -> int:
        """The length of vectors by the nodes' lists of models; 0 if unknown.

        dimensions: as requested; 0 for all.
        """
        known = (node.find_model(model) for node in self._cluster.view.having(model))
        dim = max((each.dim or 0 for each in known if each is not None), default=0)
        return min(dimensions or dim, dim)

    def reason(self, model: str, setbacks: Sequence[Setback] = ()) -> str:
        """Why a request went to its node, in a few words of ASCII.

        setbacks: those of its `Relayed` or `RelayStream`.
        """
        reason = f"{self._strategy}, 1 of {len(self._eligibility.ready(model))}"
        return f"{reason}, {after(setbacks)}" if setbacks else reason

    async def ask(
        self, node: str, method: str, path: str, body: bytes | None = None, *, timeout: float
    ) -> bytes:
        """One node's answer to a request that computes nothing. Raises NodeError, PoolClosed.

        Not counted, takes no slot, and is not retried.
        """
        self._check_open()
        if node not in self._cluster:
            raise NodeUnreachable(node, "was removed")
        transport, seconds = self._transport_of(node), check_timeout(timeout)
        return await transport.request(
            method, path, body, timeout=seconds, headers=self._trace_headers()
        )

    def ask_stream(
        self, node: str, path: str, body: bytes, *, timeout: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Like `ask`, for a POST whose answer is streamed. Leaving early cancels it."""
        self._check_open()
        if node not in self._cluster:
            raise NodeUnreachable(node, "was removed")
        transport, seconds = self._transport_of(node), check_timeout(timeout)
        return transport.stream(path, body, timeout=seconds, headers=self._trace_headers())

    async def ask_any(
        self, model: str, method: str, path: str, body: bytes | None = None, *, timeout: float
    ) -> Relayed:
        """The answer of the first node that has `model` and does not fail.

        Raises ModelNotFound, NoNodeAvailable, PoolClosed, NodeError.
        """
        self._check_open()
        failed: dict[str, str] = {}
        attempts: list[NodeError] = []
        for node in await self._eligibility.wait_ready(model):
            try:
                answer = await self.ask(node.name, method, path, body, timeout=timeout)
            except NodeError as error:
                attempts.append(error)
                failed[node.name] = error.detail
            else:
                return Relayed(node.name, answer, [Setback.of(each) for each in attempts])
        if all(isinstance(attempt, ModelMissing) for attempt in attempts):
            raise attempts[-1]
        raise NoNodeAvailable("every node that was asked failed", failed, attempts)

    def _trace_headers(self) -> Mapping[str, str] | None:
        trace = self.tracing.current()
        return None if trace is None else trace.headers

    def _call(
        self,
        kind: Kind,
        path: str,
        model: str,
        body: bytes,
        texts: Sequence[str],
        dimensions: int | None,
        *,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
    ) -> tuple[RelayCall, CallOptions]:
        self._check_open()
        if "embed" in path:
            seconds, tokens = self._embed_timeout, self._cluster.ratio(model).tokens_of(texts)
            read = _READERS.get(path, read_vector) if texts else read_vector
        else:
            seconds, tokens = self._chat_timeout, len(body) / CHARACTERS_PER_TOKEN
            read = read_talk
        seconds = seconds if timeout is None else check_timeout(timeout)
        call = RelayCall(
            path,
            kind,
            model,
            body,
            read,
            tokens,
            reload_key(options),
            loading_of(options, keep_alive),
            dimensions,
            most_output(options),
        )
        return call, CallOptions(seconds, check_priority(priority), sticky, timeout is None)
