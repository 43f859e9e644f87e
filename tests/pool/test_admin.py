"""What an operator does with a running pool, over real HTTP: errors, events, the end."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from aiosollol import (
    ConfigError,
    InvalidInput,
    NoNodeAvailable,
    OllamaPool,
    PoolClosed,
)
from aiosollol.core.events import Loading, NodeChanged, Routed
from aiosollol.net.primitives import TaskScope
from aiosollol.testing import FakeModel, FakeOllama, Fault, fake_vector

pytestmark = pytest.mark.anyio

EMBED = FakeModel("nomic-embed-text", dim=16)
CHAT = FakeModel("llama3.2", kind="chat")
MODEL = "nomic-embed-text"
HELLO = [{"role": "user", "content": "hello there"}]


def vector(text: str) -> bytes:
    return bytes(fake_vector(EMBED.digest, text, EMBED.dim))


# Errors come early and in clear words.


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda pool: pool.embed(MODEL, "a", timeout=0), "timeout must be"),
        (lambda pool: pool.embed(MODEL, "a", timeout=float("inf")), "timeout must be"),
        (lambda pool: pool.embed(MODEL, "a", timeout="5"), "timeout must be"),
        (lambda pool: pool.embed(MODEL, "a", timeout=True), "timeout must be"),
        (lambda pool: pool.embed_batch(MODEL, ["a"], timeout=-1), "timeout must be"),
        (lambda pool: pool.chat("llama3.2", HELLO, timeout=0), "timeout must be"),
        (lambda pool: pool.generate("llama3.2", "x", timeout=float("nan")), "timeout must be"),
        (lambda pool: pool.embed(MODEL, "a", priority=0), "priority must be"),
        (lambda pool: pool.embed(MODEL, "a", priority=11), "from 1 to 10"),
        (lambda pool: pool.chat("llama3.2", HELLO, priority=5.0), "priority must be"),
        (lambda pool: pool.chat("llama3.2", HELLO, priority=True), "priority must be"),
        (lambda pool: pool.chat("llama3.2", HELLO, sticky=3), "sticky must be"),
        (lambda pool: pool.generate("llama3.2", "x", sticky=["a"]), "sticky must be"),
        (lambda pool: pool.route(MODEL, kind="embedding"), "kind must be"),
        (lambda pool: pool.route(MODEL, tokens=-1), "tokens must be"),
        (lambda pool: pool.route(MODEL, tokens="many"), "tokens must be"),
        (lambda pool: pool.route(""), "model is empty"),
        (lambda pool: pool.warm(""), "model is empty"),
        (lambda pool: pool.warm(MODEL, nodes="a"), "nodes must be a list"),
        (lambda pool: pool.warm(MODEL, nodes=["typo"]), "no node 'typo'; there are a"),
        (lambda pool: pool.warm(MODEL, nodes=5), "nodes must be a list"),
        (lambda pool: pool.verify(None), "model must be a string"),
        (lambda pool: pool.drain("typo"), "no node 'typo'; there are a"),
        (lambda pool: pool.drain(3), "name or URL"),
        (lambda pool: pool.remove_node("typo"), "no node 'typo'; there are a"),
        (lambda pool: pool.remove_node(None), "name or URL"),
        (lambda pool: pool.add_node("ftp://a"), "ftp"),
        (lambda pool: pool.add_node(7), "int"),
        (lambda pool: pool.add_node("http://127.0.0.1:9", name="a"), "two nodes"),
        (lambda pool: pool.add_node("http://127.0.0.1:9", priority="low"), "priority"),
    ],
)
async def test_bad_arguments_are_refused_before_anything_is_sent(call: Any, says: str) -> None:
    async with (
        FakeOllama(models=[EMBED, CHAT]) as fake,
        OllamaPool([{"url": fake.url, "name": "a"}]) as pool,
    ):
        with pytest.raises(InvalidInput, match=says):
            await call(pool)
        assert fake.requests == 0
        with pytest.raises(InvalidInput, match="no node 'typo'"):
            pool.resume("typo")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"require_digest": "0a109f422b47"}, "map models to digests"),
        ({"require_digest": ["m"]}, "map models to digests"),
        ({"require_digest": {"m": "0a1"}}, "at least 7 hexadecimal digits"),
        ({"require_digest": {"m": "not hexadecimal"}}, "hexadecimal"),
        ({"require_digest": {"m": 5}}, "must be a string"),
        ({"require_digest": {5: "0a109f422b47"}}, "model must be a string"),
        ({"routing_strategy": "fastest"}, "routing_strategy must be"),
        ({"routing_strategy": 5}, "routing_strategy must be"),
        ({"max_retries": -1}, "max_retries must be"),
        ({"hedge_rate": 2}, "hedge_rate must be"),
        ({"wait_timeout": "long"}, "wait_timeout must be"),
        ({"max_wating": 5}, "did you mean"),
    ],
)
def test_bad_settings_are_refused_when_the_pool_is_made(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        OllamaPool(["127.0.0.1"], **settings)


async def test_a_pool_that_is_not_open_does_nothing() -> None:
    pool = OllamaPool(["http://127.0.0.1:9"])
    for call in (
        lambda: pool.route(MODEL),
        lambda: pool.warm(MODEL),
        lambda: pool.verify(MODEL),
        lambda: pool.drain("a"),
        lambda: pool.add_node("127.0.0.1"),
        lambda: pool.remove_node("a"),
    ):
        with pytest.raises(PoolClosed):
            await call()
    for sync in (pool.events, lambda: pool.resume("a")):
        with pytest.raises(PoolClosed):
            sync()
    assert issubclass(ConfigError, InvalidInput)


# "It must show" 3, over sockets.


@pytest.mark.parametrize("leaving", [0, 30])
async def test_64_callers_of_a_cold_model(leaving: int) -> None:
    cold: dict[str, Any] = {
        "models": [EMBED],
        "load_seconds": 0.3,
        "seconds_per_item": 0.001,
        "max_queue": 1,
    }
    texts = [f"text {number}" for number in range(64)]
    async with FakeOllama(**cold) as one, FakeOllama(**cold) as two:
        # At once, so that nobody has told yet what it has in memory.
        # Without hedges and canaries, of which the last may be cancelled.
        async with OllamaPool([one.url, two.url], hedge_rate=0.0, canary=False) as pool:
            calls = [asyncio.ensure_future(pool.embed(MODEL, text)) for text in texts]
            while not one.in_flight + two.in_flight:
                await asyncio.sleep(0)
            for call in calls[:leaving]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            for text, result in list(zip(texts, results, strict=True))[leaving:]:
                assert not isinstance(result, BaseException), result
                assert result.tobytes() == vector(text)
            assert pool.get_stats()["failed_requests"] == 0
        for fake in (one, two):
            worked = [record for record in fake.log if record.model]
            loads = [record for record in worked if not record.items]
            assert len(loads) == bool(worked)
            assert all(record.status == 200 for record in worked)
            assert fake.cancelled == 0


# The whole of it.


async def test_an_operators_day() -> None:
    async with FakeOllama(models=[EMBED, CHAT]) as one, FakeOllama(models=[EMBED]) as two:
        async with OllamaPool([{"url": one.url, "name": "one"}]) as pool:
            events = pool.events()
            assert await pool.embed(MODEL, "a") is not None
            state = await pool.add_node(two.url, name="two")
            assert state.has_model(MODEL)
            explained = await pool.route(MODEL, tokens=10)
            assert {node.name for node in explained.nodes} == {"one", "two"}
            assert explained.chosen in ("one", "two")
            warmed = await pool.warm(MODEL)
            assert set(warmed) == {"one", "two"}
            assert all(isinstance(seconds, float) for seconds in warmed.values())
            assert (await pool.verify(MODEL)).outliers == ()
            await pool.drain("one")
            assert pool.get_stats()["node_performance"][one.url.removeprefix("http://")]["draining"]
            explained = await pool.route(MODEL)
            assert explained.chosen == "two"
            assert "draining" in str(explained)
            before = one.requests
            for _ in range(5):
                await pool.embed(MODEL, "b")
            assert one.requests == before
            with pytest.raises(NoNodeAvailable, match="drained"):
                await pool.chat("llama3.2", HELLO)
            pool.resume("one")
            await pool.chat("llama3.2", HELLO)
            await pool.remove_node(two.url)
            assert set(pool.view.nodes) == {"one"}
            await pool.embed(MODEL, "c")
        seen = [event async for event in events]
    assert {type(event) for event in seen} == {Routed, Loading, NodeChanged}
    changes = [(each.node, each.change) for each in seen if isinstance(each, NodeChanged)]
    assert changes == [
        ("two", "added"),
        ("one", "draining"),
        ("one", "resumed"),
        ("two", "removed"),
    ]


async def test_route_says_who_is_distrusted() -> None:
    async with (
        FakeOllama(models=[EMBED]) as one,
        FakeOllama(models=[EMBED]) as two,
        OllamaPool([{"url": one.url, "name": "one"}, two.url]) as pool,
    ):
        await pool.embed(MODEL, "a")
        await pool.refresh()
        pool._registry["one"].distrusted.add(f"{MODEL}:latest")
        pool._registry.wake()
        explained = await pool.route(MODEL)
        (one_of,) = [node for node in explained.nodes if node.name == "one"]
        assert not one_of.is_eligible
        assert "verify" in one_of.reason
        assert (await pool.route(MODEL, kind="generate")).nodes[0].is_eligible


@pytest.mark.parametrize("cold", [False, True])
async def test_closing_in_the_middle_of_everything_leaves_nothing(cold: bool) -> None:
    before = asyncio.all_tasks()
    given: dict[str, Any] = {"models": [EMBED, CHAT], "slots": 4}
    async with FakeOllama(**given) as one, FakeOllama(**given) as two:
        pool = OllamaPool([one.url, two.url])
        await pool.start()
        await pool.refresh()
        if not cold:
            for _ in range(60):
                await pool.embed(MODEL, "a")
            await pool.warm("llama3.2")
        reading = asyncio.ensure_future(anext(pool.events()))
        for fake in (one, two):
            fake.fault = Fault.HANG

        async def read_stream() -> None:
            async for _ in await pool.chat("llama3.2", HELLO, stream=True):
                pass

        calls = [
            asyncio.ensure_future(call)
            for call in (
                *(pool.embed(MODEL, f"text {number}") for number in range(20)),
                pool.embed_batch(MODEL, [f"text {number}" for number in range(50)]),
                *(pool.chat("llama3.2", HELLO) for _ in range(5)),
                read_stream(),
                pool.warm(MODEL),
                pool.verify(MODEL),
                pool.embed("typo", "a"),
            )
        ]
        draining = asyncio.ensure_future(pool.drain(one.url))
        for _ in range(200):
            await asyncio.sleep(0)
        async with asyncio.timeout(4):
            await pool.aclose(wait=0)
            results = await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.gather(draining, reading, return_exceptions=True)
        assert {type(result) for result in results[:-1]} == {PoolClosed}
        for node in pool._registry:
            assert (node.in_flight, node.queued, len(node.backlog)) == (0, 0, 0)
            assert not node.loading
        assert len(pool._registry.room) == 0
        del results, calls, draining, reading
        gc.collect()  # an exception that nobody took would be logged, and a warning is an error
        for fake in (one, two):
            fake.fault = None
        while one.in_flight + two.in_flight:
            await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before


async def test_a_scope_of_asyncio_ends_what_is_in_it_and_nothing_else() -> None:
    async def run(scope: TaskScope, log: list[str]) -> None:
        try:
            with scope:
                await asyncio.sleep(3600)
            log.append("after")
            await asyncio.sleep(0)  # what was cancelled is over
            log.append("end")
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    # By itself, by itself twice, and together with somebody else's cancellation.
    for cancels, from_outside, expected in (
        (1, False, ["after", "end"]),
        (2, False, ["after", "end"]),
        (1, True, ["cancelled"]),
        (0, True, ["cancelled"]),
    ):
        scope, log = TaskScope(), []
        task = asyncio.create_task(run(scope, log))
        await asyncio.sleep(0)
        for _ in range(cancels):
            scope.cancel()
        if from_outside:
            task.cancel()
        await asyncio.wait([task])
        assert log == expected
        scope.cancel()  # too late to mean anybody
    with TaskScope() as _:
        pass
