"""Live requests from end to end: tried again, cut off, sticky, and every account even at last."""

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

from aiosollol.core.routing.retry import FIRST_PAUSE, RETRY_FLOOR
from aiosollol.errors import (
    BadRequest,
    ConnectionLost,
    NodeError,
    NodeTimeout,
    NoNodeAvailable,
    PoolClosed,
    PoolSaturated,
    RequestFailed,
    RunnerFailed,
    ServerBusy,
    StreamCutOff,
)
from aiosollol.live.model_loader import LOAD_SECONDS
from aiosollol.live.router import LiveOptions
from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


# Tried again.

PASSING = [
    Fault.ERROR_500,
    Fault.BUSY_503,
    Fault.BAD_400_RUNNER,
    Fault.RESET,
    Fault.CUT_JSON,
    Fault.HTML,
    Fault.HTML_502,
    Fault.REFUSE,
]


@pytest.mark.parametrize("fault", [*PASSING, Fault.NAN, Fault.TOO_FEW])
async def test_what_fails_on_one_node_is_done_by_another_at_once(fault: Fault) -> None:
    async with cluster(a={}, b={}, strategy="priority") as made:
        await made.warm_up()
        made["a"].fault = fault
        for _ in range(4):
            began = anyio.current_time()
            assert await made.embed() == vector()
            assert anyio.current_time() - began < 0.001
            if fault not in (Fault.NAN, Fault.TOO_FEW):
                assert str(await made.chat())
        assert made.stats()["failed_requests"] >= 1
        made["a"].fault = None
        await made.rest()


@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.BUSY_503, Fault.RESET])
async def test_the_only_node_is_asked_again_a_little_later(fault: Fault) -> None:
    async with cluster(a={}) as made:
        await made.warm_up()
        made["a"].fail_next(fault, 2)
        began = anyio.current_time()
        assert await made.embed() == vector()
        assert 0.0 < anyio.current_time() - began <= FIRST_PAUSE * (1 + 2)
        assert made.stats()["failed_requests"] == 2
        await made.rest()


async def test_after_a_minute_it_is_enough_and_all_attempts_are_listed() -> None:
    async with cluster(a={}) as made:
        await made.warm_up()
        made["a"].fault = Fault.BUSY_503
        began = anyio.current_time()
        with pytest.raises(NoNodeAvailable, match="after 60 s") as caught:
            await made.embed(timeout=300.0)
        assert anyio.current_time() - began == pytest.approx(60.0)
        attempts = caught.value.attempts
        assert {type(each) for each in attempts} == {ServerBusy}
        assert 60.0 / 0.8 <= len(attempts) <= 60.0 / 0.4 + 5
        assert f"({len(attempts)} times)" in str(caught.value)
        assert isinstance(caught.value.__cause__, ServerBusy)
        made["a"].fault = None
        await made.rest()


@pytest.mark.parametrize("retries", [0, 1])
async def test_how_often_is_a_setting(retries: int) -> None:
    async with cluster(a={}, b={}, c={}, max_retries=retries) as made:
        await made.warm_up()
        for name in "abc":
            made[name].fault = Fault.TOO_FEW
        with pytest.raises(NoNodeAvailable) as caught:
            await made.embed()
        assert len(caught.value.attempts) == retries + 1


async def test_no_attempt_begins_after_the_callers_deadline() -> None:
    async with cluster(a={}, b={}, c={}) as made:
        await made.warm_up()
        for fake in made.transports.values():
            fake.fault = Fault.BUSY_503
            fake.overhead = 0.4
        for timeout in (0.1, 1.0, 3.0):
            began = anyio.current_time()
            with pytest.raises(RequestFailed):
                await made.embed(timeout=timeout)
            assert anyio.current_time() - began <= timeout + 1e-9
        for fake in made.transports.values():
            fake.fault = None
        await made.rest()


async def test_an_outage_is_not_made_worse_by_retries() -> None:
    async with cluster(a={"slots": 100}, b={"slots": 100}) as made:
        await made.warm_up()
        for fake in made.transports.values():
            fake.fault = Fault.BUSY_503
        before = sum(fake.requests for fake in made.transports.values())
        results = await gather(*[partial(made.embed, timeout=5.0)] * 200)
        assert all(isinstance(each, RequestFailed) for each in results)
        sent = sum(fake.requests for fake in made.transports.values()) - before
        assert sent <= 200 * 1.2 + RETRY_FLOOR + 2
        for fake in made.transports.values():
            fake.fault = None
        await made.rest()


async def test_a_bad_request_gets_one_second_opinion() -> None:
    poison = {"poison": {"arsenic"}}
    async with cluster(a=poison, b=poison, c=poison) as made:
        await made.warm_up()
        before = made.stats()["total_requests"]
        with pytest.raises(BadRequest):
            await made.embed("arsenic")
        assert made.stats()["total_requests"] == before + 2
        assert made.live.calls.second_opinions == 1


async def test_the_time_of_a_call_is_for_all_of_it() -> None:
    async with cluster(a={}, b={}, max_retries=10) as made:
        await made.warm_up()
        for fake in made.transports.values():
            fake.fault = Fault.HANG
        for call in (made.embed, made.chat, made.stream):
            began = anyio.current_time()
            with pytest.raises((NodeTimeout, RequestFailed)):
                await call(timeout=3.0)
            assert anyio.current_time() - began == pytest.approx(3.0, abs=0.01)
        for fake in made.transports.values():
            fake.fault = None
        await made.rest()


# Streams.


@pytest.mark.parametrize(
    "fault", [*(set(PASSING) - {Fault.CUT_JSON}), Fault.STREAM_CUT, Fault.STREAM_ERROR]
)
async def test_a_stream_fails_over_before_its_first_part(fault: Fault) -> None:
    async with cluster(a={}, b={}, strategy="priority") as made:
        await made.warm_up()
        made["a"].fault = fault
        stream = await made.stream("one")  # of a prompt of one word, half is nothing
        assert [str(part) async for part in stream] == ["one", ""]
        made["a"].fault = None
        await made.rest()


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault.STREAM_CUT, None),
        (Fault.STREAM_ERROR, RunnerFailed),
        (Fault.RESET, ConnectionLost),
    ],
)
async def test_afterwards_the_error_says_how_much_was_delivered(
    fault: Fault, cause: type[Exception] | None
) -> None:
    async with cluster(a={}, b={}) as made:
        await made.warm_up()
        for fake in made.transports.values():
            fake.fault = fault
        stream = await made.stream("one two three four five six")
        parts: list[str] = []
        for _ in range(2):  # and again, who reads on must not take it for the end
            with pytest.raises(StreamCutOff) as caught:
                async for part in stream:
                    parts.append(str(part))  # noqa: PERF401 - what came before counts
            assert len(parts) == caught.value.delivered == stream.parts == 3
        if cause is not None:
            assert isinstance(caught.value.__cause__, cause)
        for fake in made.transports.values():
            fake.fault = None
        await made.rest()


async def test_a_first_part_that_is_late_is_the_nodes_failure() -> None:
    async with cluster(a={}, b={}, strategy="priority", first_byte_timeout=2.0) as made:
        await made.warm_up()
        made.node("a").standing = type(made.node("a").standing)()
        made["a"].fail_next(Fault.HANG)
        before = made.stats()
        stream = await made.stream("one two")
        assert [str(part) async for part in stream] == ["one", " two", ""]
        after = made.stats()
        lost = sum(after[key] - before[key] for key in ("failed_requests", "cancelled_requests"))
        assert lost == 1
        await made.rest()


async def test_with_one_node_a_late_first_part_is_an_error() -> None:
    async with cluster(a={}, first_byte_timeout=2.0, max_retries=0) as made:
        await made.warm_up()
        made["a"].fault = Fault.HANG
        with pytest.raises(NodeTimeout, match="nothing within 2 s"):
            await made.stream()
        assert made.stats()["failed_requests"] == 1
        assert made.stats()["cancelled_requests"] == 0
        made["a"].fault = None
        await made.rest()


async def test_a_slow_stream_is_not_late_once_it_has_begun() -> None:
    async with cluster(a={"seconds_per_chat_token": 5.0}, first_byte_timeout=6.0) as made:
        stream = await made.stream("one two three")
        assert len([part async for part in stream]) == 4
        assert anyio.current_time() == pytest.approx(15.0)
        assert made.stats()["successful_requests"] == 1
        await made.rest()


async def test_a_stream_takes_no_longer_than_the_call_may() -> None:
    async with cluster(a={"seconds_per_chat_token": 1.0}) as made:
        stream = await made.stream("one two three four five six", timeout=3.5)
        with pytest.raises(StreamCutOff, match="after 3 parts") as caught:
            async for _ in stream:
                pass
        assert isinstance(caught.value.__cause__, NodeTimeout)
        assert anyio.current_time() == pytest.approx(3.5)
        await made.rest()


async def test_a_stream_that_stalls_ends_long_before_its_timeout() -> None:
    async with cluster(a={"seconds_per_chat_token": 100.0}) as made:
        stream = await made.stream("one two three", timeout=300.0)
        await anext(stream)
        began = anyio.current_time()
        with pytest.raises(StreamCutOff, match="sent nothing for 60 s, after 1 parts"):
            await anext(stream)
        assert anyio.current_time() == pytest.approx(began + 60.0)
        await made.rest()


async def test_a_stream_whose_reader_is_slow_does_not_stall() -> None:
    async with cluster(a={"seconds_per_chat_token": 1.0}) as made:
        stream = await made.stream("one two three", timeout=1000.0)
        async for _ in stream:
            await anyio.sleep(100.0)
        await made.rest()


async def test_a_stream_whose_reader_is_cancelled_does_not_look_whole_afterwards() -> None:
    async with cluster(a={"seconds_per_chat_token": 1.0}) as made:
        stream = await made.stream("one two three")
        await anext(stream)
        with anyio.move_on_after(0.5):
            await anext(stream)
        with pytest.raises(StreamCutOff, match="cancelled"):
            await anext(stream)
        assert made.stats()["cancelled_requests"] == 1
        await made.rest()


async def test_a_stream_that_is_closed_or_left_gives_its_place_back() -> None:
    async with cluster(a={"seconds_per_chat_token": 1.0, "max_concurrency": 1}) as made:
        async with await made.stream("one two three"):
            assert made.node("a").in_flight == 1
        assert made.node("a").in_flight == 0
        stream = await made.stream("one two three")
        await stream.aclose()
        assert [part async for part in stream] == []
        await made.rest()


async def test_the_pools_end_during_a_stream_that_is_waited_for() -> None:
    errors: list[Exception] = []
    async with (
        anyio.create_task_group() as calls,
        cluster(a={"seconds_per_chat_token": 10.0, "slots": 2}) as made,
    ):
        waiting, idle = await made.stream("one two three"), await made.stream("one two")

        async def read() -> None:
            try:
                async for _ in waiting:
                    pass
            except Exception as error:
                errors.append(error)

        calls.start_soon(read)
        await anyio.sleep(1.0)
        began = anyio.current_time()
        await made.close()
    assert [type(each) for each in errors] == [PoolClosed]
    with pytest.raises(PoolClosed):
        await anext(idle)
    assert anyio.current_time() == began
    made.check_rest()
    assert made.stats()["failed_requests"] == 0, "it was our own end, and no fault of the node"


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
        await made.care.drain(home)
        assert await asked() == other
        made.care.resume(home)
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
        if name not in made.registry:
            made.add(name, **_NODE)
        await made.monitor.probe(name)
    elif name not in made.registry:
        return
    elif kind == "remove":
        await made.remove(name)
    elif kind == "drain":
        with anyio.move_on_after(1.0):
            await made.care.drain(name)
    elif kind == "resume":
        made.care.resume(name)
    elif kind == "probe":
        await made.monitor.probe(name)
    elif kind in ("verify", "warm"):
        with anyio.move_on_after(1.0):
            try:
                if kind == "verify":
                    await made.care.verify("nomic-embed-text")
                else:
                    await made.care.warm("llama3.2", [name])
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
            for name in made.registry.view.nodes:
                made[name].fault = None
            await anyio.sleep(LOAD_SECONDS + 60.0)  # a load goes on though nobody waits for it
            made.check_rest()
            await made.probe()
            for node in list(made.registry):
                made.care.resume(node.name)
            if len(made.registry):
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
