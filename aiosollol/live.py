"""Live requests: one embedding, chat or generate, to the node that will answer it soonest."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.core.resilience import Failure, classify
from aiosollol.core.routing import soonest
from aiosollol.errors import ModelNotFound, NodeError, NoNodeAvailable, PoolClosed
from aiosollol.exchange import EmbedCall, embed_on
from aiosollol.ports import Transport
from aiosollol.registry import Node, NodeRegistry
from aiosollol.streams import ReplyStream
from aiosollol.wire.embed import EmbedAnswer

PATIENCE_SECONDS = 0.2
"""How long a new pool waits for its other nodes once the first has answered."""

_REFRESH_SECONDS = 1.0
_MAX_NAMES = 256  # of models: callers choose them, so not every typo must be kept
_MAX_ATTEMPTS = 3
_BACK_OFF_SECONDS = 0.5

_Answer = TypeVar("_Answer")
_Part = TypeVar("_Part", bound=ChatReply | GeneratedText)


class LiveCalls:
    """Sends live requests over the nodes of a registry, and finds the nodes fit for a model.

    transport_of: how to reach a node, by name. probe: asks a node what it has, and never raises.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        transport_of: Callable[[str], Transport],
        probe: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._registry = registry
        self._transport_of = transport_of
        self._probe = probe
        self._ready: dict[str, tuple[int, list[Node]]] = {}
        self._patience_until: float | None = None
        self._refreshing: anyio.Event | None = None
        self._sought_at: dict[str, float] = {}
        self._is_closed = False
        self._streams: set[ReplyStream[Any]] = set()

    async def aclose(self) -> None:
        """Close the streams that are still open, and let whoever waits raise PoolClosed."""
        self._is_closed = True
        self._registry.wake()
        for stream in list(self._streams):
            # One that a task is waiting on ends there, when its connection is closed under it.
            if not stream.is_waiting:
                await stream.aclose()

    # Which nodes.

    async def candidates(self, model: str, *, patient: bool = False) -> list[Node]:
        """The nodes that are up and have `model`, at least one.

        Waits until one has answered; `patient` also waits a moment for the others of a pool that
        was just started. Raises ModelNotFound or NoNodeAvailable.
        """
        if self._patience_until is None:
            self._patience_until = anyio.current_time() + PATIENCE_SECONDS
        while True:
            if self._is_closed:
                raise PoolClosed("the pool was closed")
            version = self._registry.version
            nodes = self._having(model)
            is_complete = all(node.is_known for node in self._registry)
            patience = self._patience_until - anyio.current_time()
            if nodes and (is_complete or not patient or patience <= 0):
                return nodes
            if not nodes and is_complete:
                break
            with anyio.move_on_after(patience if nodes else None):
                await self._registry.wait_changed(version)
        # It may have been pulled, or come back, since the last look.
        now = anyio.current_time()
        if now - self._sought_at.get(model, -math.inf) > _REFRESH_SECONDS:
            if len(self._sought_at) > _MAX_NAMES:
                self._sought_at.clear()
            self._sought_at[model] = now
            await self.probe_all()
            nodes = self._having(model)
        if not nodes:
            raise self._nobody(model)
        return nodes

    async def probe_all(self) -> None:
        """Ask every node what it has. Callers at the same time share one round."""
        while self._refreshing is not None:
            await self._refreshing.wait()
            if self._refreshing is None:
                return
        self._refreshing = done = anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                for node in self._registry:
                    group.start_soon(self._probe, node.name)
        finally:
            self._refreshing = None
            done.set()

    def _having(self, model: str) -> list[Node]:
        version, nodes = self._ready.get(model, (-1, []))
        if version != self._registry.version:
            nodes = [
                node
                for node in self._registry
                if not node.state.is_down and node.state.has_model(model)
            ]
            if len(self._ready) > _MAX_NAMES:
                self._ready.clear()
            self._ready[model] = (self._registry.version, nodes)
        return nodes

    def _nobody(self, model: str) -> ModelNotFound | NoNodeAvailable:
        states = self._registry.view.nodes
        silent = {name: state.error for name, state in states.items() if state.is_down}
        having = {
            name: sorted(state.models)
            for name, state in states.items()
            if state.models is not None and not state.is_down
        }
        if having:
            return ModelNotFound(model, having, silent)
        return NoNodeAvailable("no node answers; is Ollama running there?", silent)

    # Requests.

    async def embed(self, call: EmbedCall) -> EmbedAnswer:
        """The vectors of a call. Raises NodeError or RequestFailed."""

        async def send(node: Node) -> EmbedAnswer:
            return await embed_on(node, self._transport_of(node.name), self._registry, call)

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
            sent_at = anyio.current_time()

            def on_end(stream: ReplyStream[_Part], error: BaseException | None) -> None:
                self._streams.discard(stream)
                now = anyio.current_time()
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
        sent_at = anyio.current_time()
        try:
            yield sent_at
        except NodeError as error:
            node.fail(error, anyio.current_time())
            self._registry.failed(node, error, model)
            raise
        except BaseException:  # the caller left
            node.cancel(anyio.current_time())
            raise
        else:
            node.succeed(sent_at, anyio.current_time())
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
            nodes = await self.candidates(model)
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
                if self._is_closed:
                    raise PoolClosed("the pool was closed during this call") from error
                if classify(error) is Failure.INPUT:
                    raise
                attempts.append(error)
                tried.add(node.name)
                if len(attempts) >= max(_MAX_ATTEMPTS, len(nodes)):
                    raise _all_failed(attempts) from error


def _may_pass(error: NodeError) -> bool:
    return classify(error) in (Failure.BUSY, Failure.ANSWER)


def _all_failed(attempts: Sequence[NodeError]) -> NoNodeAvailable:
    nodes = {error.node: error.detail for error in attempts}
    return NoNodeAvailable("every node that was asked failed", nodes, attempts)
