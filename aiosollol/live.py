"""Live requests: one embedding, chat or generate, to the node that will answer it soonest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import anyio

from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.core.resilience import Failure, classify
from aiosollol.errors import NodeError, NoNodeAvailable, PoolClosed
from aiosollol.exchange import EmbedCall, embed_on
from aiosollol.ports import Transport
from aiosollol.registry import Node, Registry
from aiosollol.roster import Roster
from aiosollol.streams import ReplyStream
from aiosollol.wire.embed import EmbedAnswer

_MAX_ATTEMPTS = 3
_BACK_OFF_SECONDS = 0.5

_Answer = TypeVar("_Answer")
_Part = TypeVar("_Part", bound=ChatReply | GeneratedText)


class LiveCalls:
    """Sends live requests over the nodes of a registry.

    roster: says which are fit for a model. transport_of: how to reach a node, by name.
    """

    def __init__(
        self,
        registry: Registry,
        roster: Roster,
        transport_of: Callable[[str], Transport],
    ) -> None:
        self._registry = registry
        self._roster = roster
        self._transport_of = transport_of
        # Weak: who drops a stream without closing it is to be done with it.
        self._streams: WeakSet[ReplyStream[Any]] = WeakSet()

    async def aclose(self) -> None:
        """Close the streams that are still open."""
        for stream in list(self._streams):
            # One that a task is waiting on ends there, when its connection is closed under it.
            if not stream.is_waiting:
                await stream.aclose(PoolClosed("the pool was closed during this stream"))

    async def embed(self, call: EmbedCall) -> EmbedAnswer:
        """The vectors of a call. Raises NodeError or RequestFailed."""
        send = partial(embed_on, self._registry, self._transport_of, call)
        return await self._try_nodes(call.model, send)

    async def converse(
        self,
        path: str,
        model: str,
        body: bytes,
        load: Callable[[str, bytes], _Part],
        timeout: float,
    ) -> _Part:
        """A whole answer of chat or generate. Raises NodeError or RequestFailed."""

        async def send(node: Node) -> _Part:
            async with self._accounted(node, model):
                transport = self._transport_of(node.name)
                data = await transport.request("POST", path, body, timeout=timeout)
                return load(node.name, data)

        return await self._try_nodes(model, send)

    async def open_stream(
        self,
        path: str,
        model: str,
        body: bytes,
        load: Callable[[str, bytes], _Part],
        timeout: float,
    ) -> ReplyStream[_Part]:
        """A streamed answer whose first part has arrived. Raises NodeError or RequestFailed."""

        async def send(node: Node) -> ReplyStream[_Part]:
            await node.enter()
            sent_at = self._registry.clock()

            def on_end(stream: ReplyStream[_Part], error: BaseException | None) -> None:
                self._streams.discard(stream)
                now = self._registry.clock()
                if error is None:
                    node.succeed(sent_at, now)
                    self._registry.answered(node)
                elif isinstance(error, NodeError):
                    node.fail(error, now)
                    self._registry.failed(node, error, model)
                else:
                    node.cancel(now)
                node.leave()

            response = self._transport_of(node.name).stream(path, body, timeout=timeout)
            stream = ReplyStream(node.name, response, load, on_end)
            self._streams.add(stream)
            await stream.open()
            return stream

        return await self._try_nodes(model, send)

    @asynccontextmanager
    async def _accounted(self, node: Node, model: str) -> AsyncIterator[float]:
        """Count a request to `node` as what it turns out to be. Gives the time of its start."""
        await node.enter()
        sent_at = self._registry.clock()
        try:
            yield sent_at
        except NodeError as error:
            node.fail(error, self._registry.clock())
            self._registry.failed(node, error, model)
            raise
        except BaseException:  # the caller left
            node.cancel(self._registry.clock())
            raise
        else:
            node.succeed(sent_at, self._registry.clock())
            self._registry.answered(node)
        finally:
            node.leave()

    async def _try_nodes(self, model: str, send: Callable[[Node], Awaitable[_Answer]]) -> _Answer:
        """Send to the best node, and to the next best if it fails, each once.

        When all have failed in a way that may pass, the best is tried again after a pause.
        """
        attempts: list[NodeError] = []
        tried: set[str] = set()
        while True:
            nodes = self._roster.ready(model) or await self._roster.wait_ready(model)
            node = soonest([node for node in nodes if node.name not in tried] if tried else nodes)
            if node is None:
                if len(attempts) >= _MAX_ATTEMPTS or not _may_pass(attempts[-1]):
                    raise _all_failed(attempts) from attempts[-1]
                await anyio.sleep(_BACK_OFF_SECONDS * 2 ** (len(attempts) - 1))
                tried.clear()
                continue
            try:
                return await send(node)
            except NodeError as error:
                if self._roster.is_closed:
                    raise PoolClosed("the pool was closed during this call") from error
                if classify(error) is Failure.INPUT:
                    raise
                attempts.append(error)
                tried.add(node.name)
                if len(attempts) >= max(_MAX_ATTEMPTS, len(nodes)):
                    raise _all_failed(attempts) from error


def soonest(nodes: Sequence[Node]) -> Node | None:
    """The node expected to answer first, None if there is none."""
    return min(nodes, key=lambda n: ((n.in_flight + 1) * n.latency, n.in_flight), default=None)


def _may_pass(error: NodeError) -> bool:
    return classify(error) in (Failure.BUSY, Failure.ANSWER)


def _all_failed(attempts: Sequence[NodeError]) -> NoNodeAvailable:
    nodes = {error.node: error.detail for error in attempts}
    return NoNodeAvailable("every node that was asked failed", nodes, attempts)
