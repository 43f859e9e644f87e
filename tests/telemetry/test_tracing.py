"""A client's trace reaches the nodes, with every request that it causes; and headers say why."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import pytest
from gateway_cluster import MODELS, Cluster, cluster

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.node import NodeSpec
from aiosollol.core.stats import CallCounters
from aiosollol.errors import ProtocolError
from aiosollol.gateway.micro_batching import Key, MicroBatcher
from aiosollol.gateway.options import GatewayOptions
from aiosollol.net.transport import HttpTransport
from aiosollol.testing import FakeOllama, FakeTransport, Fault, fake_tokens

pytestmark = pytest.mark.anyio

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-01"
TRACE = {"traceparent": PARENT, "tracestate": "rojo=1,congo=t61"}
CHAT = {"model": "tiny-chat", "messages": [{"role": "user", "content": "one two three"}]}
EMBED = {"model": "all-minilm", "input": "a text"}


def fakes(count: int) -> list[FakeOllama]:
    return [FakeOllama(models=MODELS) for _ in range(count)]


def seen(gateway: Cluster) -> list[Mapping[str, str]]:
    """The headers of what computed on the nodes, or loaded a model."""
    records = [record for node in gateway.nodes for record in node.log]
    return [record.headers for record in records if record.method == "POST"]


async def ask(gateway: Cluster, path: str, body: Any, **headers: str) -> list[Mapping[str, str]]:
    """The same, of one request through the gateway alone."""
    for node in gateway.nodes:
        node.log.clear()
    answer = await gateway.post(path, body, **headers)
    assert answer.status == 200, answer.body
    return seen(gateway)


RELAYED = [
    ("/api/chat", CHAT),
    ("/api/chat", {**CHAT, "stream": False}),
    ("/api/generate", {"model": "tiny-chat", "prompt": "one two"}),
    ("/api/generate", {"model": "tiny-chat"}),
    ("/api/embed", EMBED),
    ("/api/embeddings", {"model": "all-minilm", "prompt": "a text"}),
    ("/api/show", {"model": "tiny-chat"}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/embeddings", EMBED),
]


@pytest.mark.parametrize(("path", "body"), RELAYED)
async def test_a_trace_reaches_the_node(path: str, body: Any) -> None:
    async with cluster() as gateway:
        sent = await ask(gateway, path, body, **TRACE)
        assert sent
        for headers in sent:  # what loads the model among them
            assert {name: headers.get(name) for name in TRACE} == TRACE
        # The next request, on the same connection, belongs to nothing.
        for headers in await ask(gateway, path, body):
            assert not {"traceparent", "tracestate"} & {name.lower() for name in headers}


async def test_a_malformed_trace_is_dropped() -> None:
    async with cluster() as gateway:
        for malformed in ("00-zz-1-01", f"{PARENT}-more", "", "ff" + PARENT[2:]):
            for headers in await ask(gateway, "/api/embed", EMBED, traceparent=malformed):
                assert "traceparent" not in headers
        state = {"traceparent": PARENT, "tracestate": "Rojo"}
        for headers in await ask(gateway, "/api/embed", EMBED, **state):
            assert headers["traceparent"] == PARENT
            assert "tracestate" not in headers


async def test_all_requests_of_a_list_carry_its_trace() -> None:
    async with cluster(*fakes(2)) as gateway:
        await gateway.pool.warm("all-minilm")
        body = {"model": "all-minilm", "input": [f"text {number}" for number in range(300)]}
        sent = await ask(gateway, "/api/embed", body, **TRACE)
        assert len(sent) >= 2
        assert {headers.get("traceparent") for headers in sent} == {PARENT}


async def test_a_gathered_list_carries_the_trace_of_its_first_text() -> None:
    options = GatewayOptions(gather_seconds=0.05, gather_above=1)
    async with cluster(options=options) as gateway:
        node = gateway.nodes[0]
        await gateway.pool.warm("all-minilm")
        node.log.clear()
        node.overhead = 0.05
        bodies = [{"model": "all-minilm", "input": f"text {number}"} for number in range(12)]
        calls = (gateway.post("/api/embed", body, **TRACE) for body in bodies)
        answers = await asyncio.gather(*calls)
        assert all(answer.status == 200 for answer in answers)
        assert max(record.items for record in node.log) > 1
        assert {headers.get("traceparent") for headers in seen(gateway)} == {PARENT}


class ListsOnly:
    """What a `MicroBatcher` needs of a pool: notes each list and its trace, and answers late."""

    def __init__(self) -> None:
        self.lists: list[tuple[str, list[str]]] = []
        self.calls = CallCounters()
        self.may_answer = asyncio.Event()

    @property
    def view(self) -> ListsOnly:
        return self

    def having(self, model: str) -> list[str]:
        return ["one node"]

    @property
    def gateway_access(self) -> ListsOnly:
        return self

    @property
    def wait_timeout(self) -> float:
        return 30.0

    async def embed_gathered(
        self, model: str, texts: list[str], *_: object, **__: object
    ) -> Embeddings:
        self.lists.append((CALLER.get(), texts))
        await self.may_answer.wait()
        return Embeddings(memoryview(array("f", [1.0] * len(texts))), 1)


CALLER: ContextVar[str] = ContextVar("caller", default="")


async def test_a_list_that_waited_for_another_has_the_trace_of_its_own_first_text() -> None:
    pool = ListsOnly()
    gatherer = MicroBatcher(pool, 1e-6, 1)  # type: ignore[arg-type]  # all that it uses of a pool

    async def embed(name: str) -> None:
        CALLER.set(name)
        with gatherer.enter(Key("m")):
            await gatherer.embed(Key("m"), name)

    async with asyncio.TaskGroup() as group:
        for count, name in enumerate("ab", 1):  # as many as may be under way
            group.create_task(embed(name))
            while len(pool.lists) < count:
                await asyncio.sleep(0)
        for name in "cd":
            group.create_task(embed(name))
        while len(gatherer._groups[Key("m")].waiting) < 2:
            await asyncio.sleep(0)
        pool.may_answer.set()
    await gatherer.aclose()
    assert pool.lists == [("a", ["a"]), ("b", ["b"]), ("c", ["c", "d"])]


async def test_requests_at_once_keep_their_own_traces() -> None:
    async with cluster(*fakes(2)) as gateway:
        for node in gateway.nodes:
            node.seconds_per_chat_token = 0.01
        await gateway.pool.warm("tiny-chat")
        for node in gateway.nodes:
            node.log.clear()
        parents = [PARENT, OTHER] * 5
        calls = (gateway.post("/api/chat", CHAT, traceparent=parent) for parent in parents)
        assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
        assert sorted(headers["traceparent"] for headers in seen(gateway)) == sorted(parents)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_second_attempt_carries_it_too_and_the_reason_tells_of_the_first(
    stream: bool,
) -> None:
    sick, sound = fakes(2)
    async with cluster(sick, sound, settings={"routing_strategy": "round_robin"}) as gateway:
        await gateway.pool.warm("tiny-chat")
        for node in gateway.nodes:
            node.log.clear()
        sick.fault = Fault.ERROR_500
        answers = [
            await gateway.post("/api/chat", {**CHAT, "stream": stream}, **TRACE) for _ in range(2)
        ]
        assert [answer.status for answer in answers] == [200, 200]
        assert sick.log
        assert {headers.get("traceparent") for headers in seen(gateway)} == {PARENT}
        name = sick.url.removeprefix("http://")
        told = [answer.headers["X-Sollol-Reason"] for answer in answers]
        assert f"round_robin, 1 of 2, after {name} failed: its model failed" in told
        sick.fault = None


async def test_the_reason_tells_of_a_refused_connection() -> None:
    sick, sound = fakes(2)
    async with cluster(sick, sound, settings={"routing_strategy": "round_robin"}) as gateway:
        await gateway.pool.warm("all-minilm")
        sick.fault = Fault.REFUSE
        told = []
        for _ in range(3):
            answer = await gateway.post("/api/embeddings", {"model": "all-minilm", "prompt": "a"})
            assert answer.status == 200
            told.append(answer.headers["X-Sollol-Reason"])
        assert any("failed: no connection" in reason or "broke" in reason for reason in told), told
        sick.fault = None


async def test_tokens_and_plans_are_counted() -> None:
    async with cluster() as gateway:
        stats = gateway.pool.get_stats()
        assert (stats["tokens"], stats["plans"]) == (0, {})
        assert stats["cache"] == {"enabled": False}
        counted = 0
        for path, body in (
            ("/api/chat", CHAT),
            ("/api/chat", {**CHAT, "stream": False}),
            ("/api/generate", {"model": "tiny-chat", "prompt": "one two", "stream": False}),
            ("/api/embed", EMBED),
        ):
            last = (await gateway.post(path, body)).lines[-1]
            counted += last.get("prompt_eval_count", 0) + last.get("eval_count", 0)
            assert gateway.pool.get_stats()["tokens"] == counted
        usage = (await gateway.post("/v1/embeddings", EMBED)).json["usage"]
        counted += usage["prompt_tokens"]
        part = await gateway.pool.chat("tiny-chat", CHAT["messages"])
        counted += part.prompt_eval_count + part.eval_count
        stream = await gateway.pool.chat("tiny-chat", CHAT["messages"], stream=True)
        part = [part async for part in stream][-1]
        counted += part.prompt_eval_count + part.eval_count
        assert gateway.pool.get_stats()["tokens"] == counted
        texts = ["one", "two", "three"]
        await gateway.post("/api/embed", {"model": "all-minilm", "input": texts})
        counted += sum(fake_tokens(text) for text in texts)
        stats = gateway.pool.get_stats()
        assert stats["tokens"] == counted
        assert sum(stats["plans"].values()) == 1
        (told,) = stats["vram_monitoring"]["nodes"].values()
        assert told["source"] == "ollama"


# The way to a node.


async def test_headers_of_one_request_are_sent_with_it_alone() -> None:
    async with FakeOllama(models=MODELS) as node:
        way = HttpTransport(NodeSpec(node.url, name="node", headers={"Tracestate": "own=1"}))
        try:
            await way.request("GET", "/api/tags", timeout=5.0, headers=TRACE)
            await way.request("GET", "/api/tags", timeout=5.0)
            body = b'{"model":"tiny-chat","prompt":"one"}'
            async with way.stream("/api/generate", body, timeout=5.0, headers=TRACE) as pieces:
                _ = [piece async for piece in pieces]
        finally:
            await way.aclose()
        first, second, third = (record.headers for record in node.log)
        assert first["traceparent"] == third["traceparent"] == PARENT
        assert "traceparent" not in second
        # Twice would be malformed: what every request to the node has counts more.
        assert first["tracestate"] == "own=1"
        assert len([name for name in first if name.lower() == "tracestate"]) == 1


@pytest.mark.parametrize("headers", [{"a b": "1"}, {"A": "1\r\nB: 2"}, {"Content-Length": "1"}])
async def test_a_header_that_cannot_be_sent_is_not(headers: dict[str, str]) -> None:
    way = HttpTransport(NodeSpec("http://127.0.0.1:9", name="node"))
    with pytest.raises(ProtocolError, match="cannot be asked"):
        await way.request("GET", "/api/tags", timeout=5.0, headers=headers)
    await way.aclose()


async def test_a_fake_transport_notes_them() -> None:
    node = FakeTransport()
    await node.request("GET", "/api/tags", timeout=5.0, headers=TRACE)
    await node.request("GET", "/api/tags", timeout=5.0)
    assert [record.headers for record in node.log] == [TRACE, {}]
