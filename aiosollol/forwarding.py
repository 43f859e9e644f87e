"""Requests of others passed on to nodes as they are: what a gateway needs of `OllamaPool`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, cast

from aiosollol.core.cost import CHARACTERS_PER_TOKEN
from aiosollol.core.explain import Setback, after
from aiosollol.core.request import check_timeout, loading_of, reload_key
from aiosollol.core.waiting import USUAL, check_priority
from aiosollol.errors import ModelMissing, NodeError, NodeUnreachable, NoNodeAvailable
from aiosollol.live import LiveCalls, Wishes
from aiosollol.node_registry import NodeRegistry
from aiosollol.ports import Tracing
from aiosollol.relay import (
    RelayCall,
    Relayed,
    RelayStream,
    read_talk,
    read_vector,
    read_vectors_of_one,
)
from aiosollol.roster import Roster
from aiosollol.upkeep import Upkeep

_READERS = {"/api/embed": read_vectors_of_one, "/api/embeddings": read_vector}

Kind = Literal["embed", "chat", "generate", "load"]


class Forwarding:
    """Base of the pool: what it needs is set by the pool. Not meant to be used by itself."""

    _registry: NodeRegistry
    _roster: Roster
    _live: LiveCalls
    _upkeep: Upkeep
    _embed_timeout: float
    _chat_timeout: float
    _wait_timeout: float
    _strategy_name: str
    _tracing: Tracing

    def _check_open(self) -> None:
        raise NotImplementedError

    @property
    def tracing(self) -> Tracing:
        """Who follows its requests."""
        return self._tracing

    @property
    def wait_timeout(self) -> float:
        """Seconds that a request waits for a place on a node."""
        return self._wait_timeout

    async def forward(
        self,
        kind: Kind,
        path: str,
        model: str,
        body: bytes,
        *,
        texts: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
    ) -> Relayed:
        """The whole answer to a request with this `body`, as the node wrote it.

        It goes its way as one of `embed`, `chat` or `generate` does. kind: what it is; "load" if it
        computes nothing. path: of the endpoint. texts: what is to be embedded, one text or none.
        options, keep_alive: those in `body`.

        Raises ModelNotFound, NoNodeAvailable, PoolSaturated, BadRequest, PoolClosed.
        """
        call, wishes = self._call(
            kind, path, model, body, texts, options, keep_alive, timeout, priority, sticky
        )
        relayed: Relayed = await self._live.converse(call, wishes)
        if texts and relayed.node in self._registry:
            self._registry[relayed.node].counters.vectors += 1
        return relayed._replace(setbacks=call.setbacks) if call.setbacks else relayed

    async def forward_stream(
        self,
        kind: Kind,
        path: str,
        model: str,
        body: bytes,
        *,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        timeout: float | None = None,
        priority: int = USUAL,
        sticky: str | None = None,
    ) -> RelayStream:
        """As `forward`, of a streamed answer whose first line has arrived."""
        call, wishes = self._call(
            kind, path, model, body, (), options, keep_alive, timeout, priority, sticky
        )
        # What a `RelayCall` is answered by.
        stream = cast(RelayStream, await self._live.open_stream(call, wishes))
        stream.setbacks = call.setbacks
        return stream

    def reason(self, model: str, setbacks: Sequence[Setback] = ()) -> str:
        """Why a request went where it went, in a few words of ASCII.

        setbacks: what `Relayed` or `RelayStream` says came before.
        """
        reason = f"{self._strategy_name}, 1 of {len(self._roster.ready(model))}"
        return f"{reason}, {after(setbacks)}" if setbacks else reason

    async def ask(
        self, node: str, method: str, path: str, body: bytes | None = None, *, timeout: float
    ) -> bytes:
        """What one node answers to a request that computes nothing. Raises NodeError, PoolClosed.

        It is neither counted nor does it wait for a place, and is not tried again.
        """
        self._check_open()
        if node not in self._registry:
            raise NodeUnreachable(node, "was removed")
        transport, seconds = self._upkeep.transport_of(node), check_timeout(timeout)
        return await transport.request(
            method, path, body, timeout=seconds, headers=self._trace_headers()
        )

    def ask_stream(
        self, node: str, path: str, body: bytes, *, timeout: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """As `ask`, of a POST whose answer comes in pieces. Leaving it early cancels it."""
        self._check_open()
        if node not in self._registry:
            raise NodeUnreachable(node, "was removed")
        transport, seconds = self._upkeep.transport_of(node), check_timeout(timeout)
        return transport.stream(path, body, timeout=seconds, headers=self._trace_headers())

    async def ask_any(
        self, model: str, method: str, path: str, body: bytes | None = None, *, timeout: float
    ) -> Relayed:
        """What one of the nodes that have `model` answers: the first that does.

        Raises ModelNotFound, NoNodeAvailable, PoolClosed, NodeError.
        """
        self._check_open()
        failed: dict[str, str] = {}
        attempts: list[NodeError] = []
        for node in await self._roster.wait_ready(model):
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
        trace = self._tracing.current()
        return None if trace is None else trace.headers

    def _call(
        self,
        kind: Kind,
        path: str,
        model: str,
        body: bytes,
        texts: Sequence[str],
        options: Mapping[str, Any] | None,
        keep_alive: str | float | None,
        timeout: float | None,
        priority: int,
        sticky: str | None,
    ) -> tuple[RelayCall, Wishes]:
        self._check_open()
        if "embed" in path:
            seconds, tokens = self._embed_timeout, self._registry.ratio(model).tokens_of(texts)
            read = _READERS.get(path, read_vector) if texts else read_vector
        else:
            seconds, tokens = self._chat_timeout, len(body) / CHARACTERS_PER_TOKEN
            read = read_talk
        seconds = seconds if timeout is None else check_timeout(timeout)
        call = RelayCall(
            path,
            model,
            body,
            read,
            tokens,
            seconds,
            reload_key(options),
            loading_of(options, keep_alive),
            kind,
        )
        return call, Wishes(seconds, check_priority(priority), sticky, timeout is None)
