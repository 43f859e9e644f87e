"""Fake nodes and all parts of the live path over them, in virtual time.

Independent of asyncio: tests run on trio's MockClock, where a minute takes no real time and all
times are exact.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.abc
import trio.testing

from aiosollol.batch.engine_batches import EngineBatches
from aiosollol.batch.runner import BatchRunner, OnProgress
from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.health_monitor import HealthMonitor
from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.embeddings import Embeddings
from aiosollol.core.events import PoolEvent
from aiosollol.core.reply import ChatReply
from aiosollol.core.request import EmbedSettings, loading_of, most_output, reload_key
from aiosollol.core.routing.strategies import RoutingFunction, strategy_of
from aiosollol.core.routing.wait_queue import LOW
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.core.stats import pool_stats
from aiosollol.errors import PoolClosed
from aiosollol.live.admission import Admission
from aiosollol.live.calls import EmbedCall, TalkCall
from aiosollol.live.canary import VectorCanary
from aiosollol.live.model_loader import ModelLoader
from aiosollol.live.node_client import NodeClient
from aiosollol.live.router import CallOptions, LiveOptions, RequestRouter
from aiosollol.live.streaming import ReplyStream
from aiosollol.pool.admin import PoolAdmin, Strategy
from aiosollol.ports import Engine
from aiosollol.testing import FakeModel, FakeTransport, Fault, fake_vector
from aiosollol.wire.ollama.chat import load_chat
from aiosollol.wire.ollama.client import dump
from aiosollol.wire.ollama.embeddings import dump_embed, fits_base64

EMBED = FakeModel("nomic-embed-text", dim=8)
CHAT = FakeModel("llama3.2", kind="chat")
MODEL, TALKER = "nomic-embed-text", "llama3.2"


def virtual_time() -> tuple[str, dict[str, Any]]:
    """For the fixture `anyio_backend`: trio with a clock that jumps when all tasks wait."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class Cluster:
    """The parts of a pool, except those that need asyncio. Create it with `cluster`."""

    def __init__(
        self,
        nodes: Mapping[str, Mapping[str, Any]],
        group: anyio.abc.TaskGroup,
        *,
        strategy: str | RoutingFunction = "performance",
        wait_timeout: float = 30.0,
        max_waiting: int = 1000,
        require_digest: Mapping[str, str] | None = None,
        seed: int = 1,
        **options: Any,
    ) -> None:
        self.state = ClusterState(max_waiting=max_waiting)
        self.transports: dict[str, FakeTransport] = {}
        self.group = group
        self.is_closed = False
        for name, given in nodes.items():
            self.add(name, **given)
        self.monitor = HealthMonitor(self.state, self.transport_of, rng=random.Random(seed))
        self.eligibility = Eligibility(self.state, self.monitor.probe, require_digest)
        self.loads = ModelLoader(self.spawn)
        self.node_client = NodeClient(self.state, self.transport_of, self.loads)
        self.canary = VectorCanary(self.state, self.node_client, self.monitor.ask_loaded)
        rng = random.Random(seed)
        function = strategy_of(strategy)
        self.admission = Admission(
            self.state, self.eligibility, function, wait_timeout, rng, self.spawn
        )
        self.live = RequestRouter(
            self.state,
            self.eligibility,
            self.admission,
            self.node_client,
            LiveOptions(**options),
            self.spawn,
            rng,
        )
        self.engines: dict[str, Engine] = {}
        self.engine_batches = EngineBatches(self.state, self.engines, threshold=100)
        self.batches = BatchRunner(
            self.state, self.node_client, self.eligibility, self.engine_batches, 60.0
        )
        state: Any = SimpleNamespace(name="open", check=lambda: None)  # not bound to an event loop
        self.admin = PoolAdmin(
            cast(Any, self.state),
            self.eligibility,
            self.node_client,
            self.batches,
            Strategy(function, "test"),
            PlanOptions(),
            rng,
            state,
        )

    def __getitem__(self, name: str) -> FakeTransport:
        return self.transports[name]

    def node(self, name: str) -> Node:
        return self.state[name]

    def add(self, name: str, **given: Any) -> None:
        """Add a node that was not probed yet. Spec fields and fake options may be mixed."""
        spec = {
            key: given.pop(key)
            for key in ("max_concurrency", "priority", "vram_gb")
            if key in given
        }
        given.setdefault("models", [EMBED, CHAT])
        self.transports[name] = FakeTransport(name, **given)
        self.state.add({"url": f"http://{name}.test", "name": name, **spec})

    def transport_of(self, name: str) -> FakeTransport:
        if self.is_closed:
            raise PoolClosed("the pool is closed")
        return self.transports[name]

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self.is_closed:
            work.close()
            return

        async def run() -> None:
            await work

        self.group.start_soon(run)

    async def probe(self) -> None:
        for name in list(self.state.view.nodes):
            await self.monitor.probe(name)

    async def remove(self, name: str) -> None:
        """Remove a node, then its connections, as a pool does."""
        self.state.remove(name)
        await self.transports.pop(name).aclose()

    async def close(self) -> None:
        """Close like `OllamaPool.aclose`, except that the tasks end with their group."""
        self.is_closed = True
        self.group.cancel_scope.cancel()
        self.eligibility.close()
        self.loads.close()
        for node in self.state:
            node.send_away()
        self.batches.close()
        with anyio.CancelScope(shield=True):
            await self.live.aclose()
            for transport in self.transports.values():
                await transport.aclose()
        self.state.hub.close()

    # Calls, made as by the pool.

    async def embed(
        self,
        text: str = "a text",
        *,
        model: str = MODEL,
        timeout: float = 60.0,
        priority: int = 5,
        sticky: str | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        is_patient: bool = False,
    ) -> bytes:
        settings = EmbedSettings(model=model, options=options, keep_alive=keep_alive)
        call = EmbedCall(
            model=model,
            texts=[text],
            body=dump_embed(settings, [text]),
            fits_base64=fits_base64(settings),
            tokens=self.state.ratio(model).tokens_of([text]),
            options=reload_key(options),
            loading=loading_of(options, keep_alive),
        )
        answer = await self.live.embed(call, CallOptions(timeout, priority, sticky, is_patient))
        return answer.floats.tobytes()

    def _talk(
        self, text: str, model: str, options: Mapping[str, Any] | None, *, stream: bool
    ) -> TalkCall[ChatReply]:
        payload = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "stream": stream,
            "options": options,
        }
        return TalkCall(
            "/api/chat",
            "chat",
            model,
            dump(payload),
            load_chat,
            20.0,
            reload_key(options),
            loading_of(options, None),
            max_output=most_output(options),
        )

    async def chat(
        self,
        text: str = "one two three four",
        *,
        model: str = TALKER,
        timeout: float = 300.0,
        priority: int = 5,
        sticky: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> ChatReply:
        call = self._talk(text, model, options, stream=False)
        return await self.live.converse(call, CallOptions(timeout, priority, sticky))

    async def stream(
        self, text: str = "one two three four", *, timeout: float = 300.0, sticky: str | None = None
    ) -> ReplyStream[ChatReply]:
        call = self._talk(text, TALKER, None, stream=True)
        return await self.live.open_stream(call, CallOptions(timeout, 5, sticky))

    async def embed_batch(
        self,
        texts: list[str],
        *,
        model: str = MODEL,
        timeout: float | None = None,
        engine: str = "auto",
        on_progress: OnProgress | None = None,
        priority: int = LOW,
    ) -> Embeddings:
        settings = EmbedSettings(model=model)
        return await self.batches.embed(
            settings, texts, {}, PlanOptions(), on_progress, timeout, engine, priority=priority
        )

    def use_only(self, *names: str) -> None:
        """Drain the other nodes. Without names, drain none."""
        for node in self.state:
            node.is_draining = bool(names) and node.name not in names
        self.state.wake()

    async def warm_up(self, *, times: int = 1) -> None:
        """Let each node answer an embedding and a chat, so that its costs are known."""
        for name in self.transports:
            self.use_only(name)
            for _ in range(times):
                await self.embed()
                await self.chat()
        self.use_only()

    # Checks at the end.

    def stats(self) -> dict[str, Any]:
        nodes = [node.stats(self.state.clock()) for node in self.state]
        return pool_stats(nodes, strategy="test")

    def check_rest(self) -> None:
        """Check that nothing is in flight and all counters balance."""
        nodes = list(self.state)
        for node in nodes:
            assert node.in_flight == 0, node
            assert node.queued == 0, node
            assert len(node.backlog) == 0, node
            assert not node.loading, node
            assert not node.outrun, node
            assert not node.breaker.is_probing, node
            assert node.ahead(self.state.clock()) == 0.0, node
            assert not node.has_chunks, node
            assert node.wanted == 0, node
            assert self[node.name].in_flight == 0, node
        assert len(self.state.room) == 0
        stats = self.stats()
        assert stats["total_requests"] == (
            stats["successful_requests"] + stats["failed_requests"] + stats["cancelled_requests"]
        )
        open_ones = {node.name for node in nodes if node.breaker.opens_at is not None}
        assert self.state.not_closed == open_ones

    async def rest(self) -> None:
        """Let abandoned requests and model loads end, then check the counters."""
        await anyio.sleep(20.0)
        self.check_rest()


@asynccontextmanager
async def cluster(probed: bool = True, **given: Any) -> AsyncIterator[Cluster]:
    """``cluster(a={...}, b={...}, strategy="score")``: arguments that are mappings are nodes."""
    nodes = {name: each for name, each in given.items() if isinstance(each, Mapping)}
    nodes.pop("require_digest", None)
    options = {name: each for name, each in given.items() if name not in nodes}
    async with anyio.create_task_group() as group:
        made = Cluster(nodes, group, **options)
        if probed:
            await made.probe()
        yield made
        group.cancel_scope.cancel()


def vector(text: str = "a text", model: FakeModel = EMBED) -> bytes:
    return bytes(fake_vector(model.digest, text, model.dim))


async def now() -> float:
    return anyio.current_time()


def words(count: int) -> list[str]:
    """Different texts of one length."""
    return [f"passage {index:05d}" for index in range(count)]


async def strike(
    made: Cluster, fault: Fault, names: str, seconds: float, after: float = 0.0
) -> None:
    """Give these nodes a fault `after` some seconds, for `seconds`."""
    await anyio.sleep(after)
    for name in names:
        made[name].fault = fault
    await anyio.sleep(seconds)
    for name in names:
        made[name].fault = None


class Watcher:
    """Records the events of a cluster."""

    def __init__(self, made: Cluster) -> None:
        self._stream = made.state.hub.watch()

    def seen(self) -> list[PoolEvent]:
        return list(self._stream._waiting)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.seen() if isinstance(event, kind)]


async def gather(*calls: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of concurrent calls, each a value or the exception it raised."""
    results: list[Any] = [None] * len(calls)

    async def run(index: int, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            results[index] = await call()
        except Exception as error:
            results[index] = error

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(run, index, call)
    return results
