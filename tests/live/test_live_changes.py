"""Live requests while nodes come and go, and every account even at last."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from live_cluster import (
    Cluster,
    cluster,
    gather,
    vector,
    virtual_time,
)

from aiosollol.errors import (
    NodeError,
    PoolClosed,
    PoolSaturated,
    RequestFailed,
)
from aiosollol.live.model_loader import LOAD_SECONDS
from aiosollol.live.router import LiveOptions
from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


# Sticky.


async def test_a_conversation_stays_where_its_cache_is() -> None:
    nodes = {name: {"seconds_per_chat_token": 0.1, "slots": 4} for name in "abcd"}
    async with cluster(**nodes) as made:
        await made.warm_up()
        homes: dict[str, Counter[str]] = {}
        for _ in range(6):
            for conversation in ("x", "y", "z"):
                before = {name: made[name].requests for name in "abcd"}
                await made.chat(sticky=conversation)
                (home,) = [name for name in "abcd" if made[name].requests > before[name]]
                homes.setdefault(conversation, Counter())[home] += 1
        assert [len(each) for each in homes.values()] == [1, 1, 1]


async def test_it_moves_when_its_node_is_much_busier_or_gone_and_then_stays_there() -> None:
    nodes = {name: {"seconds_per_chat_token": 0.1} for name in "ab"}
    async with cluster(**nodes, max_retries=3) as made:
        await made.warm_up()

        async def asked() -> str:
            async with await made.stream(sticky="x") as stream:
                return stream.node

        home = await asked()
        (other,) = {"a", "b"} - {home}
        await made.admin.drain(home)
        assert await asked() == other
        made.admin.resume(home)
        await anyio.sleep(25.0)
        assert await asked() == other


# Nodes come and go.


async def test_what_a_removed_node_had_is_done_by_others() -> None:
    nodes = {name: {"seconds_per_item": 0.5, "seconds_per_chat_token": 0.2} for name in "abc"}
    async with cluster(**nodes) as made:
        await made.warm_up()
        texts = [f"text {number}" for number in range(30)]

        async def remove() -> None:
            await anyio.sleep(0.7)
            await made.remove("a")

        results = await gather(
            remove,
            partial(made.embed_batch, texts),
            *[made.embed] * 10,
            *[made.chat] * 5,
        )
        assert not [each for each in results if isinstance(each, Exception)]
        assert results[2:12] == [vector()] * 10
        await made.rest()


async def test_a_node_that_is_added_takes_part_in_what_is_under_way() -> None:
    async with cluster(a={"seconds_per_item": 1.0}) as made:
        await made.warm_up()

        async def add() -> None:
            await anyio.sleep(0.5)
            made.add("b", seconds_per_item=0.1)
            await made.monitor.probe("b")

        began = anyio.current_time()
        results = await gather(add, *[made.embed] * 20)
        assert results == [None] + [vector()] * 20
        assert made["b"].items >= 10
        assert anyio.current_time() - began < 10.0
        await made.rest()


async def test_a_retry_that_sleeps_ends_with_the_pool() -> None:
    errors: list[Exception] = []
    async with anyio.create_task_group() as calls, cluster(a={}) as made:
        await made.warm_up()
        made["a"].fault = Fault.BUSY_503

        async def call() -> None:
            try:
                await made.embed(timeout=1000.0)
            except Exception as error:
                errors.append(error)

        for _ in range(5):
            calls.start_soon(call)
        await anyio.sleep(0.01)
        began = anyio.current_time()
        await made.close()
    assert [type(each) for each in errors] == [PoolClosed] * 5
    assert anyio.current_time() == began


def test_the_options_have_the_defaults_of_the_settings() -> None:
    from aiosollol.config.settings import Settings

    held = Settings()
    assert LiveOptions() == LiveOptions(
        held.max_retries,
        held.retry_budget,
        held.hedge_rate,
        held.first_byte_timeout,
        held.outage_patience,
        held.stall_timeout,
    )


# Everything at once.

TROUBLES = st.lists(
    st.tuples(
        st.sampled_from(
            [*Fault, None, None, "drain", "resume", "remove", "add", "probe", "verify", "warm"]
        ),
        st.sampled_from("abcd"),
        st.floats(0.0, 2.0),
    ),
    max_size=12,
)


async def _trouble(made: Cluster, kind: Any, name: str) -> None:
    if kind == "add":
        if name not in made.state:
            made.add(name, **_NODE)
        await made.monitor.probe(name)
    elif name not in made.state:
        return
    elif kind == "remove":
        await made.remove(name)
    elif kind == "drain":
        with anyio.move_on_after(1.0):
            await made.admin.drain(name)
    elif kind == "resume":
        made.admin.resume(name)
    elif kind == "probe":
        await made.monitor.probe(name)
    elif kind in ("verify", "warm"):
        with anyio.move_on_after(1.0):
            try:
                if kind == "verify":
                    await made.admin.verify("nomic-embed-text")
                else:
                    await made.admin.warm("llama3.2", [name])
            except RequestFailed:
                pass
    else:
        made[name].fault = kind


_NODE: dict[str, Any] = {
    "seconds_per_item": 0.05,
    "seconds_per_chat_token": 0.02,
    "load_seconds": 0.5,
    "max_concurrency": 3,
    "slots": 2,
}


async def _caller(made: Cluster, seed: int, calls: int) -> Counter[str]:
    """Calls of every kind, of which some leave early. Returns what became of them."""
    rng = random.Random(seed)
    told: Counter[str] = Counter()
    for _ in range(calls):
        await anyio.sleep(rng.uniform(0.0, 0.3))
        kind = rng.choice(["embed", "embed", "chat", "stream", "batch", "options"])
        with anyio.move_on_after(rng.choice([0.05, 0.5, 30.0, 30.0])) as scope:
            try:
                if kind == "embed":
                    sticky = rng.choice([None, "x"])
                    timeout = rng.choice([0.5, 20.0])
                    assert await made.embed(timeout=timeout, sticky=sticky) == vector()
                elif kind == "options":
                    assert await made.embed(options={"num_ctx": 512}, timeout=20.0) == vector()
                elif kind == "chat":
                    priority = rng.randint(1, 10)
                    assert str(await made.chat("a b c", timeout=20.0, priority=priority)) == "a b c"
                elif kind == "stream":
                    async with await made.stream("a b c d", timeout=20.0) as stream:
                        async for _part in stream:
                            if rng.random() < 0.1:
                                break
                else:
                    texts = [f"text {number}" for number in range(30)]
                    batch = await made.embed_batch(texts, timeout=20.0)
                    for row, text in enumerate(texts):
                        if row not in batch.errors:
                            assert batch[row].tobytes() == vector(text)
                told["done"] += 1
            except (NodeError, RequestFailed, PoolClosed) as error:
                told[type(error).__name__] += 1
        if scope.cancelled_caught:
            told["left"] += 1
    return told


async def _storm(
    troubles: list[tuple[Any, str, float]], seed: int, strategy: str, *, closing: bool
) -> None:
    names = "abcd"
    nodes = {name: dict(_NODE) for name in names}
    async with (
        anyio.create_task_group() as calls,
        cluster(**nodes, seed=seed, strategy=strategy, max_waiting=20, wait_timeout=5.0) as made,
    ):
        async with anyio.create_task_group() as group:
            for number in range(8):
                target = calls if closing else group
                target.start_soon(_caller, made, seed + number, 6)
            for kind, name, pause in troubles:
                await anyio.sleep(pause / 4)
                group.start_soon(_trouble, made, kind, name)
        if closing:
            began = anyio.current_time()
            await made.close()
            assert anyio.current_time() == began
        else:
            for name in made.state.view.nodes:
                made[name].fault = None
            await anyio.sleep(LOAD_SECONDS + 60.0)  # a load goes on after its callers have left
            made.check_rest()
            await made.probe()
            for node in list(made.state):
                made.admin.resume(node.name)
            if len(made.state):
                for _ in range(3):
                    assert await made.embed() == vector()
                await made.rest()
    # Those who had to hear of the end have heard of it, and all is given back.
    made.check_rest()


@pytest.mark.parametrize("closing", [False, True])
@settings(
    max_examples=25,
    deadline=None,
    # An example takes a second, and there is little to see in a smaller storm.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    troubles=TROUBLES,
    seed=st.integers(0, 10_000),
    strategy=st.sampled_from(["performance", "round_robin", "least_loaded", "random", "priority"]),
)
def test_all_accounts_are_even_after_whatever_happened(
    closing: bool, troubles: list[tuple[Any, str, float]], seed: int, strategy: str
) -> None:
    logging.getLogger("aiosollol").setLevel(logging.CRITICAL)  # it is a storm, after all
    backend, options = virtual_time()
    anyio.run(
        partial(_storm, troubles, seed, strategy, closing=closing),
        backend=backend,
        backend_options=options,
    )


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    log = logging.getLogger("aiosollol")
    before = log.level
    yield
    log.setLevel(before)


async def test_a_full_house_says_so_and_recovers() -> None:
    async with cluster(a={"seconds_per_item": 0.1}, max_waiting=5) as made:
        await made.warm_up()
        results = await gather(*[made.embed] * 50)
        saturated = [each for each in results if isinstance(each, PoolSaturated)]
        assert len(saturated) == 50 - 5 - 2
        assert await made.embed() == vector()
        await made.rest()
