"""Cold models: one load per node, that nobody can throw away. In virtual time."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import Any

import anyio
import pytest
from live_cluster import (
    MODEL,
    TALKER,
    Watcher,
    cluster,
    gather,
    vector,
    virtual_time,
)

from aiosollol.core.events import Loading
from aiosollol.core.node_transitions import Probed
from aiosollol.errors import (
    BadRequest,
    NodeError,
    NodeTimeout,
    NoNodeAvailable,
    PoolClosed,
    RunnerFailed,
)
from aiosollol.live.model_loader import Load, ModelLoader
from aiosollol.testing import FakeTransport, Fault
from aiosollol.wire.ollama.client import load_tags

pytestmark = pytest.mark.anyio

COLD = {"load_seconds": 5.0, "seconds_per_item": 0.1, "max_queue": 1, "slots": 4}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


def loads_of(fake: FakeTransport) -> list[Any]:
    """The requests that only load."""
    return [
        each
        for each in fake.log
        if not each.items and each.path in ("/api/embed", "/api/generate") and each.model
    ]


# "It must show" 3.


@pytest.mark.parametrize("leaving", [0, 40])
async def test_64_callers_of_a_cold_model_cause_one_load_per_chosen_node(leaving: int) -> None:
    async with cluster(a=COLD, b=COLD, c=COLD, d=COLD) as made:
        texts = [f"text {number}" for number in range(64)]
        left = 0

        async def call(number: int) -> bytes | None:
            nonlocal left
            if number >= leaving:
                return await made.embed(texts[number])
            with anyio.move_on_after(0.1 + number / 10):
                return await made.embed(texts[number])
            left += 1
            return None

        results = await gather(*(partial(call, number) for number in range(64)))
        assert left >= min(leaving, 30)
        assert results[leaving:] == [vector(text) for text in texts[leaving:]]
        for fake in made.transports.values():
            used = [each for each in fake.log if each.model]
            assert len(loads_of(fake)) == bool(used), fake
            assert all(each.status == 200 and each.seconds >= 5.0 for each in loads_of(fake))
            assert not [each for each in fake.log if each.status == 503]
        assert made.stats()["failed_requests"] == 0
        await made.rest()


async def test_a_load_goes_on_though_all_who_asked_have_left() -> None:
    async with cluster(a=COLD) as made:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(made.embed)
            await anyio.sleep(1.0)
            group.cancel_scope.cancel()
        assert made.stats()["cancelled_requests"] == 2, "three of the five had no place yet"
        assert made.node("a").in_flight == 0
        assert made.node("a").ahead(anyio.current_time()) == pytest.approx(4.0)
        assert await made.embed() == vector()
        assert anyio.current_time() == pytest.approx(5.1)
        (load,) = loads_of(made["a"])
        assert (load.status, load.seconds) == (200, 5.0)
        assert made["a"].cancelled == 0
        await made.rest()


async def test_right_after_the_start_nobody_knows_what_is_loaded_and_all_is_the_same() -> None:
    async with cluster(a=COLD, probed=False) as made:
        made["a"].faults_probes = True
        body = await made["a"].request("GET", "/api/tags", timeout=1.0)
        made.state.apply("a", Probed(None, load_tags("a", body)))
        assert made.node("a").state.loaded is None
        with anyio.move_on_after(1.0):
            await made.embed()
        assert await made.embed() == vector()
        assert anyio.current_time() == pytest.approx(5.1)
        assert len(loads_of(made["a"])) == 1


async def test_while_a_node_loads_others_go_where_it_is_warm() -> None:
    async with cluster(a={"seconds_per_item": 0.1}, b=COLD) as made:
        made.node("b").is_draining = True
        made.state.wake()
        await made.embed()
        made.node("b").is_draining = False
        made.state.wake()
        made.group.start_soon(made.admin.warm, MODEL, ["b"])
        await anyio.sleep(0.5)
        began = anyio.current_time()
        assert await made.embed() == vector()
        assert anyio.current_time() - began == pytest.approx(0.1)
        assert made["b"].items == 0


@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.HTML, Fault.REFUSE, Fault.RESET])
async def test_a_load_that_fails_sends_its_callers_elsewhere(fault: Fault) -> None:
    async with cluster(a=COLD, b=COLD) as made:
        made["a"].fault = fault
        results = await gather(*[made.embed] * 20)
        assert results == [vector()] * 20
        assert len(loads_of(made["b"])) == 1
        made["a"].fault = None
        await made.rest()


async def test_when_no_node_can_load_the_error_says_why() -> None:
    async with cluster(a=COLD) as made:
        made["a"].fault = Fault.ERROR_500
        first, second = await gather(made.embed, made.embed)
        assert isinstance(first, NoNodeAvailable)
        assert isinstance(second, NoNodeAvailable)
        assert all(isinstance(each, RunnerFailed) for each in first.attempts)
        assert first.attempts[0] is not second.attempts[0], "each has its own, to raise"
        await made.rest()


async def test_the_time_of_a_load_is_the_callers_time() -> None:
    slow = {"load_seconds": 3.0, "seconds_per_item": 3.0}
    async with cluster(a=slow) as made:
        with pytest.raises(NodeTimeout, match="no answer within 5 s"):
            await made.embed(timeout=5.0)
        assert anyio.current_time() == pytest.approx(5.0)
        assert made.node("a").breaker.opens_at is None
        await made.rest()


async def test_who_cannot_wait_for_a_load_is_told_and_the_node_is_not_to_blame() -> None:
    async with cluster(a=COLD) as made:
        results = await gather(*[partial(made.embed, timeout=2.0)] * 8)
        assert all(isinstance(each, Exception) for each in results)
        assert sum("was still loading" in str(each) for each in results) >= 2
        assert anyio.current_time() == pytest.approx(2.0)
        assert made.node("a").breaker.opens_at is None
        assert await made.embed() == vector()
        assert len(loads_of(made["a"])) == 1
        await made.rest()


async def test_a_removed_nodes_load_ends_and_its_callers_go_elsewhere() -> None:
    async with cluster(a=COLD, b={**COLD, "load_seconds": 6.0}, strategy="priority") as made:

        async def remove() -> None:
            await anyio.sleep(1.0)
            await made.remove("a")

        results = await gather(*[made.embed] * 8, remove)
        assert results[:8] == [vector()] * 8
        await made.rest()


async def test_a_node_that_came_by_the_name_of_another_loads_for_itself() -> None:
    async with cluster(a=COLD) as made:
        made.group.start_soon(made.embed)
        await anyio.sleep(1.0)
        old, gone = made.node("a"), made["a"]
        await made.remove("a")
        made.add("a", **COLD)
        await made.probe()
        assert await made.embed() == vector()
        assert gone.items == 0
        assert len(loads_of(made["a"])) == 1
        assert old.in_flight == 0
        assert made.node("a").state.failures == 0, "what the other did is not held against it"
        await made.rest()


async def test_a_conversation_loads_as_it_needs_it_and_not_for_no_time() -> None:
    async with cluster(a=COLD) as made:
        await made.chat()
        assert [each.path for each in loads_of(made["a"])] == ["/api/generate"]
        await made.embed(keep_alive=0)
        assert [each.path for each in loads_of(made["a"])] == ["/api/generate", "/api/embed"]
        assert anyio.current_time() == pytest.approx(10.1), (
            "loaded once, and not again for the text"
        )


async def test_a_chat_with_a_model_that_only_embeds_is_told_so_by_the_server() -> None:
    async with cluster(a=COLD) as made:
        with pytest.raises(BadRequest, match="does not support chat"):
            await made.chat(model=MODEL)
        assert made.stats()["failed_requests"] == 1
        await made.rest()


async def test_a_stream_waits_for_the_load_before_its_first_part_is_due() -> None:
    async with cluster(a=COLD, first_byte_timeout=2.0) as made:
        stream = await made.stream()
        assert len([part async for part in stream]) == 5
        assert anyio.current_time() == pytest.approx(5.0)
        await made.rest()


# Options that make a server load anew.


async def test_options_that_reload_are_kept_on_one_node_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes = {name: {"load_seconds": 1.0, "seconds_per_item": 0.01} for name in "abc"}
    async with cluster(**nodes) as made:
        await made.warm_up()
        caplog.set_level(logging.WARNING, "aiosollol")
        for _ in range(20):
            await made.embed(options={"num_ctx": 512})
            await made.embed()
        used = Counter(
            {name: sum(each.path == "/api/embed" for each in made[name].log) for name in "abc"}
        )
        reloads = sum(len(loads_of(made[name])) for name in "abc") - 6  # those of the warm-up
        assert reloads == 1, used
        warned = [each for each in caplog.records if "different options" in each.message]
        assert len(warned) == 1
        assert MODEL in warned[0].getMessage()
        await made.rest()


async def test_options_that_all_have_are_no_reason_to_crowd_on_one_node() -> None:
    nodes = {name: {"seconds_per_item": 0.1, "max_concurrency": 1} for name in "abcd"}
    async with cluster(**nodes) as made:
        options = {"num_ctx": 512}
        await gather(*[partial(made.embed, options=options)] * 16)
        began = anyio.current_time()
        await gather(*[partial(made.embed, options=options)] * 40)
        assert anyio.current_time() - began == pytest.approx(1.0, rel=0.2)


async def test_another_model_is_not_moved_by_the_options_of_one() -> None:
    nodes = {name: {"seconds_per_item": 0.1, "max_concurrency": 1} for name in "abcd"}
    async with cluster(**nodes) as made:
        await made.warm_up()
        await made.chat(options={"num_ctx": 512})
        await made.chat()
        began = anyio.current_time()
        await gather(*[made.embed] * 40)
        assert anyio.current_time() - began == pytest.approx(1.0, rel=0.1)


# Its own part.


async def test_closing_wakes_those_who_wait_even_if_the_task_never_ran() -> None:
    started: list[Any] = []
    loads = ModelLoader(lambda work, name: (started.append(name), work.close()))
    ends: list[str] = []
    load = Load("a", "m", lambda: ends.append("a"))

    async def send() -> None:
        raise AssertionError("never runs")

    loads.start("key", load, send)
    assert loads.find("key") is load
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            with pytest.raises(PoolClosed):
                await load.wait(60.0)

        group.start_soon(wait)
        await anyio.sleep(1.0)
        loads.close()
    assert anyio.current_time() == pytest.approx(1.0)
    assert ends == ["a"]
    assert started == ["load m on a"]
    late = Load("b", "m", lambda: ends.append("b"))
    loads.start("other", late, send)
    with pytest.raises(PoolClosed):
        await late.wait(60.0)
    assert ends == ["a", "b"]


async def test_waiting_has_an_end_and_a_failure_is_a_copy_for_each() -> None:
    async with anyio.create_task_group() as group:

        async def run(work: Any) -> None:
            await work

        loads = ModelLoader(lambda work, name: group.start_soon(run, work))
        load = Load("a", "m", lambda: None)

        async def send() -> None:
            await anyio.sleep(2.0)
            raise RunnerFailed("a", 500, "out of memory")

        loads.start("key", load, send)
        with pytest.raises(NodeTimeout, match="still loading m after 1 s"):
            await load.wait(1.0)
        errors = await gather(*[partial(load.wait, 5.0)] * 2)
        assert [type(each) for each in errors] == [RunnerFailed] * 2
        assert errors[0] is not errors[1]
        assert loads.find("key") is None


async def test_the_events_of_loads() -> None:
    async with cluster(a=COLD) as made:
        watcher = Watcher(made)
        await made.embed()
        made["a"].fault = Fault.ERROR_500
        results = await made.admin.warm(TALKER, ["a"])
        assert isinstance(results["a"], NodeError)
        began, done, again, failed = watcher.of(Loading)
        assert (began.node, began.model, began.seconds) == ("a", MODEL, None)
        assert (done.seconds, done.error) == (pytest.approx(5.0), "")
        assert again.seconds is None
        assert "500" in failed.error
