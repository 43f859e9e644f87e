"""Batches while nodes fail, in virtual time: nothing is missing, and little time is lost."""

from __future__ import annotations

from typing import Any

import anyio
import passing_faults
import pytest
from live_cluster import cluster, strike, vector, virtual_time, words

from aiosollol.core.embeddings import Embeddings
from aiosollol.errors import BadRequest, NoNodeAvailable
from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio

PASSING = [*passing_faults.PASSING, Fault.NAN, Fault.WRONG_DIM, Fault.TOO_FEW]
NODE = {"seconds_per_item": 0.01}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


def check(found: Embeddings, texts: list[str]) -> None:
    assert not found.errors
    for row, text in enumerate(texts):
        assert bytes(found[row].cast("B")) == vector(text), row


@pytest.mark.parametrize("names", ["a", "abc"])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("fault", PASSING)
async def test_an_outage_of_all_nodes_loses_nothing_and_little_time(
    fault: Fault, seconds: float, names: str
) -> None:
    texts = words(300)
    async with cluster(**dict.fromkeys(names, NODE)) as made:
        await made.embed_batch(words(40))
        began = anyio.current_time()
        check(await made.embed_batch(texts), texts)
        usual = anyio.current_time() - began
        made.group.start_soon(strike, made, fault, names, seconds, usual / 3)
        began = anyio.current_time()
        check(await made.embed_batch(texts), texts)
        assert anyio.current_time() - began <= usual + seconds + 1.0
        made.check_rest()


@pytest.mark.parametrize("names", ["a", "abc"])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 3.0, 20.0])
async def test_a_hang_of_all_nodes_ends_when_they_answer_again(seconds: float, names: str) -> None:
    texts = words(300)
    async with cluster(**dict.fromkeys(names, NODE)) as made:
        await made.embed_batch(words(40))
        began = anyio.current_time()
        check(await made.embed_batch(texts), texts)
        usual = anyio.current_time() - began
        made.group.start_soon(strike, made, Fault.HANG, names, seconds, usual / 3)
        began = anyio.current_time()
        check(await made.embed_batch(texts), texts)
        # Three times the usual time of a request; chunks take up to half a second.
        assert anyio.current_time() - began <= usual + seconds + 1.0 + 3 * 0.5
        made.check_rest()


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("fault", PASSING)
async def test_a_batch_that_begins_in_an_outage_waits_for_its_end(fault: Fault, count: int) -> None:
    texts = words(count)
    async with cluster(a=NODE, b=NODE) as made:
        await made.embed_batch(words(40))
        made.group.start_soon(strike, made, fault, "ab", 10.0, 0.0)
        await anyio.sleep(0.001)
        began = anyio.current_time()
        check(await made.embed_batch(texts), texts)
        assert anyio.current_time() - began <= 11.0 + 0.01 * count


@pytest.mark.parametrize("fault", PASSING)
async def test_all_nodes_but_one_may_fail_for_ever(fault: Fault) -> None:
    texts = words(300)
    async with cluster(a=NODE, b=NODE, c=NODE) as made:
        made["a"].fault = made["b"].fault = fault
        began = anyio.current_time()
        check(await made.embed_batch(texts), texts)
        assert anyio.current_time() - began < 3.0 + 1.0


@pytest.mark.parametrize("fault", PASSING)
async def test_nodes_that_never_answered_are_given_up_soon(fault: Fault) -> None:
    async with cluster(a=NODE, b=NODE) as made:
        made["a"].fault = made["b"].fault = fault
        began = anyio.current_time()
        found = await made.embed_batch(words(300))
        assert anyio.current_time() - began < 3.5
        assert len(found.errors) == 300
        error = found.errors[0]
        assert isinstance(error, NoNodeAvailable)
        assert set(error.nodes) == {"a", "b"}


async def test_a_request_that_every_node_refuses_ends_at_once() -> None:
    async with cluster(a=NODE, b=NODE) as made:
        for name in "ab":
            made[name].poison = {""}  # that is in every text
        began = anyio.current_time()
        found = await made.embed_batch(words(300))
        assert len(found.errors) == 300
        assert isinstance(found.errors[0], BadRequest)
        assert anyio.current_time() - began < 1.0
        assert sum(made[name].requests for name in "ab") < 30


async def test_the_callers_timeout_ends_the_wait() -> None:
    async with cluster(a=NODE) as made:
        await made.embed_batch(words(40))
        made["a"].fault = Fault.HTML_502
        began = anyio.current_time()
        found = await made.embed_batch(words(40), timeout=5.0)
        assert anyio.current_time() - began == pytest.approx(5.0)
        assert len(found.errors) == 40


async def test_patience_ends(caplog: pytest.LogCaptureFixture) -> None:
    async with cluster(a=NODE) as made:
        await made.embed_batch(words(40))
        made["a"].fault = Fault.HTML_502
        began = anyio.current_time()
        found = await made.embed_batch(words(40))
        assert anyio.current_time() - began == pytest.approx(60.0, abs=1.0)
        assert isinstance(found.errors[0], NoNodeAvailable)
        waits = [each for each in caplog.messages if "no node answers" in each]
        assert len(waits) == 1


@pytest.mark.parametrize("nodes", ["a", "ab", "abcd"])
@pytest.mark.parametrize("count", [1, 2, 100])
async def test_a_text_that_no_node_can_embed_fails_alone(nodes: str, count: int) -> None:
    texts = [*words(count), "with arsenic"]
    async with cluster(**{name: {**NODE, "poison": {"arsenic"}} for name in nodes}) as made:
        began = anyio.current_time()
        found = await made.embed_batch(texts)
        assert list(found.errors) == [count]
        assert isinstance(found.errors[count], BadRequest)
        assert anyio.current_time() - began < 2.0
        assert all(made.node(name).breaker.opens_at is None for name in nodes)


async def test_one_node_that_refuses_everything_is_found_out() -> None:
    texts = words(300)
    async with cluster(a=NODE, b=NODE, liar={**NODE, "poison": {""}}) as made:
        check(await made.embed_batch(texts), texts)
        assert made["liar"].requests < 20
