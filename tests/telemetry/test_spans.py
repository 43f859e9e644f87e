"""Every request to a node that is followed ends once, however it ends: in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from live_cluster import MODEL, TALKER, Cluster, cluster, virtual_time

from aiosollol.core.node import NodeSpec
from aiosollol.core.routing.explain import Setback
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.scheduling.cost import CHARACTERS_PER_TOKEN
from aiosollol.errors import SollolError
from aiosollol.live.relay import RelayCall, read_talk
from aiosollol.live.router import CallOptions
from aiosollol.ports import CANCELLED
from aiosollol.testing import Fault
from aiosollol.wire.ollama.client import dump

pytestmark = pytest.mark.anyio

PACE: dict[str, Any] = {"seconds_per_item": 0.1, "seconds_per_chat_token": 0.1}
NODES: dict[str, Any] = {"a": {**PACE, "priority": 0}, "b": {**PACE, "priority": 1}}

CALLER: ContextVar[str] = ContextVar("caller", default="")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


class Followed:
    """A request to a node. ends: each time that it was told to be over."""

    def __init__(self, caller: str, kind: str, node: str) -> None:
        self.caller, self.kind, self.node = caller, kind, node
        self.headers: Mapping[str, str] = {"traceparent": f"{caller} {node}"}
        self.ends: list[str] = []

    def end(self, problem: str = "") -> None:
        self.ends.append(problem)

    def __repr__(self) -> str:
        return f"{self.caller} {self.kind} {self.node} {self.ends}"


class Follower:
    """A `ports.Tracing` and a `ports.Trace` that keep everything."""

    def __init__(self, spans: list[Followed], caller: str = "") -> None:
        self.spans = spans
        self.caller = caller
        self.headers: Mapping[str, str] = {"traceparent": caller}

    def current(self) -> Follower:
        return Follower(self.spans, CALLER.get())

    def serve(self, *_: object) -> None:
        return None

    def attempt(self, request: RouteRequest, spec: NodeSpec) -> Followed:
        self.spans.append(Followed(self.caller, request.kind, spec.name))
        return self.spans[-1]


@asynccontextmanager
async def followed(**given: Any) -> AsyncIterator[tuple[Cluster, list[Followed]]]:
    """A cluster that has answered before, and the spans of what it does from now on.

    Each must have ended once, and as often as requests were counted.
    """
    async with cluster(**(given or NODES)) as made:
        await made.warm_up()
        spans: list[Followed] = []
        before = made.stats()["total_requests"]
        made.node_client._tracing = Follower(spans)
        CALLER.set("first")
        yield made, spans
        for name in made.transports:
            made[name].fault = None
        await made.rest()
        assert [span for span in spans if len(span.ends) != 1] == []
        counted = made.stats()["total_requests"] - before
        assert counted == sum(span.kind != "load" for span in spans)


async def test_what_is_answered_ends_without_a_problem() -> None:
    async with followed() as (made, spans):
        await made.embed()
        await made.chat()
        async for part in await made.stream():
            assert spans[-1].ends == ([""] if part.done else [])
        assert [(span.kind, span.ends) for span in spans] == [
            ("embed", [""]),
            ("chat", [""]),
            ("chat", [""]),
        ]
        sent = [record.headers for name in made.transports for record in made[name].log]
        for span in spans:
            assert span.headers in sent


async def test_what_fails_is_told_by_its_kind_and_tried_again() -> None:
    async with followed(**NODES, strategy="priority") as (made, spans):
        made["a"].fail_next(Fault.ERROR_500)
        await made.chat()
        assert [(span.node, span.ends) for span in spans] == [
            ("a", ["RunnerFailed"]),
            ("b", [""]),
        ]


async def test_a_late_request_belongs_to_its_own_caller() -> None:
    """Whoever sends the second request is a task of the pool, begun by an earlier caller."""
    async with followed(**NODES, strategy="priority") as (made, spans):
        await made.chat()
        made["a"].fault = Fault.HANG
        CALLER.set("second")
        await made.chat()
        assert [(span.caller, span.node, span.ends) for span in spans] == [
            ("first", "a", [""]),
            ("second", "a", [CANCELLED]),
            ("second", "b", [""]),
        ]


async def test_a_caller_who_leaves_ends_his_request() -> None:
    async with followed(a=PACE) as (made, spans):
        made["a"].fault = Fault.HANG
        for call in (made.embed, made.chat, made.stream):
            with anyio.move_on_after(1.0):
                await call()
        assert [span.ends for span in spans] == [[CANCELLED]] * 3


async def test_a_stream_that_is_left_ends() -> None:
    async with followed(a=PACE) as (made, spans):
        stream = await made.stream()
        await anext(aiter(stream))
        await stream.aclose()
        assert [span.ends for span in spans] == [[CANCELLED]]


async def test_a_load_is_a_span_of_whoever_began_it() -> None:
    async with followed(a={**PACE, "load_seconds": 3.0}) as (made, spans):
        made["a"].memory.unload("llama3.2:latest")
        made.node("a").forget_warmed()
        with anyio.move_on_after(1.0):
            await made.chat()
        ends = {span.kind: span.ends for span in spans}
        assert ends == {"load": [], "chat": [CANCELLED]}  # who began it need not wait for it
        await anyio.sleep(5.0)
        assert ends["load"] == [""]


async def test_chunks_of_a_batch_are_spans_of_its_caller() -> None:
    async with followed() as (made, spans):
        made["a"].fail_next(Fault.RESET)
        CALLER.set("of the batch")
        await made.embed_batch([f"text {number}" for number in range(200)])
        assert {span.caller for span in spans} == {"of the batch"}
        assert {span.node for span in spans} == {"a", "b"}
        assert [span.ends for span in spans].count(["ConnectionLost"]) == 1


@pytest.mark.parametrize("seed", range(5))
async def test_after_a_storm_each_has_ended_once(seed: int) -> None:
    rng = random.Random(seed)
    nodes = {name: {**PACE, "load_seconds": 0.5, "slots": 2} for name in "abc"}
    faults = [None, None, *(fault for fault in Fault)]
    async with followed(**nodes) as (made, _):

        async def stream() -> None:
            async with await made.stream(timeout=5.0) as parts:
                async for _ in parts:
                    if rng.random() < 0.1:
                        break

        async def call() -> None:
            await anyio.sleep(rng.uniform(0.0, 30.0))
            kind = rng.randrange(4)
            with anyio.move_on_after(rng.uniform(0.1, 10.0)):
                try:
                    if kind == 0:
                        await made.embed(timeout=5.0)
                    elif kind == 1:
                        await made.chat(timeout=5.0)
                    elif kind == 2:
                        await stream()
                    else:
                        await made.embed_batch(["one", "two", "three"], timeout=5.0)
                except SollolError:
                    pass

        async def break_things() -> None:
            for _ in range(30):
                await anyio.sleep(1.0)
                made[rng.choice("abc")].fault = rng.choice(faults)

        async with anyio.create_task_group() as group:
            group.start_soon(break_things)
            for _ in range(100):
                group.start_soon(call)


# What a gateway is told of it.


def relayed(text: str = "one two") -> RelayCall:
    body = dump({"model": TALKER, "messages": [{"role": "user", "content": text}], "stream": False})
    tokens = len(body) / CHARACTERS_PER_TOKEN
    return RelayCall("/api/chat", "chat", TALKER, body, read_talk, tokens)


async def test_setbacks_tell_who_failed_and_who_was_late() -> None:
    async with cluster(**NODES, strategy="priority") as made:
        await made.warm_up()
        wishes = CallOptions(60.0)
        setbacks: list[Setback] = []
        await made.live.converse(relayed(), wishes, setbacks)
        assert setbacks == []
        made["a"].fail_next(Fault.ERROR_500)
        await made.live.converse(relayed(), wishes, setbacks)
        assert setbacks == [Setback("a", "its model failed")]
        made["a"].fault = Fault.HANG
        setbacks.clear()
        await made.live.converse(relayed(), wishes, setbacks)
        assert setbacks == [Setback("a")]
        made["a"].fault = None


async def test_nothing_is_followed_where_nobody_asks_for_it() -> None:
    async with cluster(**NODES) as made:
        await made.embed(model=MODEL)
        assert made.node_client.trace() is None
        assert all(not record.headers for name in made.transports for record in made[name].log)
