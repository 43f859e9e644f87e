"""Batches that are given to an engine: over a fake one, in virtual time."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from live_cluster import EMBED, MODEL, Cluster, cluster, virtual_time

from aiosollol.core.embeddings import Embeddings
from aiosollol.errors import BadRequest, EngineError, PoolClosed, RequestFailed
from aiosollol.testing import FakeEngine, FakeModel, fake_vector

pytestmark = pytest.mark.anyio

TEXTS = [f"text {number}" for number in range(300)]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


def equip(made: Cluster, **options: Any) -> FakeEngine:
    engine = FakeEngine(options.pop("model", EMBED), **options)
    made.engines[engine.name] = engine
    return engine


def check(embeddings: Embeddings, texts: list[str]) -> None:
    assert len(embeddings) == len(texts)
    for row, text in enumerate(texts):
        if row not in embeddings.errors:
            vector = bytes(fake_vector(EMBED.digest, text, EMBED.dim))
            assert embeddings[row].tobytes() == vector, row


async def test_a_large_batch_goes_to_the_engine_and_the_report_says_so() -> None:
    async with cluster(a={}, b={}) as made:
        engine = equip(made)
        settled: list[tuple[int, int]] = []
        texts = [*TEXTS, *TEXTS[:50]]  # equal texts are computed once, there too
        given = await made.embed_batch(texts, on_progress=lambda *so_far: settled.append(so_far))
        check(given, texts)
        assert engine.job is not None
        assert list(engine.job.texts) == TEXTS
        assert made["a"].items == made["b"].items == 0
        report = given.report
        assert report is not None
        assert (report.engine.name, report.engine.workers) == ("dask", 2)
        assert report.engine.dashboard == "http://127.0.0.1:8787/status"
        assert (report.items, report.unique) == (350, 300)
        assert report.nodes["a"].items == 300
        assert report.seconds > 0
        assert settled == sorted(settled)
        assert settled[-1] == (350, 350)
        assert made.stats()["vectors"] == 300


async def test_a_small_batch_is_computed_here_and_the_report_says_why() -> None:
    async with cluster(a={}) as made:
        engine = equip(made)
        given = await made.embed_batch(TEXTS[:99])
        check(given, TEXTS[:99])
        assert engine.job is None
        assert given.report is not None
        assert given.report.engine.name == "local"
        assert given.report.engine.reason == "99 items, fewer than the 100 for dask"


async def test_an_engine_that_cannot_begin_is_done_without_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with cluster(a={}) as made:
        engine = equip(made, fails="has no scheduler at tcp://127.0.0.1:1")
        with caplog.at_level(logging.WARNING, "aiosollol"):
            for _ in range(2):
                given = await made.embed_batch(TEXTS)
                check(given, TEXTS)
                assert given.report is not None
                assert given.report.engine.name == "local"
                assert "no scheduler" in given.report.engine.reason
        assert len([each for each in caplog.records if "no scheduler" in each.message]) == 1
        with pytest.raises(EngineError, match="no scheduler"):
            await made.embed_batch(TEXTS, engine="dask")
        engine.fails = ""
        again = await made.embed_batch(TEXTS)
        assert again.report is not None
        assert again.report.engine.name == "dask"


async def test_texts_without_a_vector_are_told_of_wherever_they_stand() -> None:
    async with cluster(a={}) as made:
        bad = BadRequest("a", 400, "input is too long")
        equip(made, missing={7: bad})
        texts = [*TEXTS, TEXTS[7]]
        given = await made.embed_batch(texts)
        check(given, texts)
        assert given.errors == {7: bad, 300: bad}
        assert given[7].tolist() != given[7].tolist()  # NaN


async def test_what_an_engine_forgets_is_an_error() -> None:
    async with cluster(a={}) as made:
        equip(made, forgets=range(40, 41))
        given = await made.embed_batch(TEXTS)
        check(given, TEXTS)
        assert 40 in given.errors
        assert "returned no vector" in str(given.errors[40])


async def test_vectors_of_another_length_are_refused() -> None:
    async with cluster(a={}) as made:
        engine = equip(made)
        odd = FakeModel(MODEL, dim=12)
        answer = engine._answer

        def answer_oddly(job: Any, part: range, *rest: Any) -> None:
            engine._model = odd if part.start == 0 else EMBED
            answer(job, part, *rest)

        engine._answer = answer_oddly  # type: ignore[method-assign]
        given = await made.embed_batch(TEXTS)
        check(given, TEXTS)
        assert given.dim == EMBED.dim
        assert "vectors of 12 dimensions, expected 8" in str(given.errors[0])


async def test_the_timeout_of_a_batch_holds_and_keeps_what_has_come() -> None:
    async with cluster(a={}) as made:
        engine = equip(made, seconds=1.0)
        given = await made.embed_batch(TEXTS, timeout=1.5)
        check(given, TEXTS)
        assert engine.was_cancelled
        assert 0 < len(given.errors) < len(TEXTS)
        assert all(type(error) is RequestFailed for error in given.errors.values())
        assert "not done within 1.5 s" in str(next(iter(given.errors.values())))


async def test_who_leaves_or_closes_ends_it_at_the_engine() -> None:
    async with cluster(a={}) as made:
        engine = equip(made, seconds=60.0)
        with anyio.move_on_after(1.0) as left:
            await made.embed_batch(TEXTS)
        assert left.cancelled_caught
        assert engine.was_cancelled
        engine.was_cancelled = False
        async with anyio.create_task_group() as group:
            group.start_soon(_close_soon, made)
            with pytest.raises(PoolClosed):
                await made.embed_batch(TEXTS)
        assert engine.was_cancelled
        await made.engine_batches.aclose()
        assert engine.is_closed


async def _close_soon(made: Cluster) -> None:
    await anyio.sleep(1.0)
    made.batches.close()


async def test_an_engine_that_is_not_turned_on_cannot_be_asked_for() -> None:
    async with cluster(a={}) as made:
        with pytest.raises(EngineError, match="enable_ray=True"):
            await made.embed_batch(TEXTS, engine="ray")
        assert (await made.embed_batch(TEXTS)).report is not None


async def test_an_engine_that_is_seen_to_be_slower_is_left_alone() -> None:
    async with cluster(a={"seconds_per_item": 0.01}) as made:
        await made.warm_up()
        equip(made, seconds=3.0)
        chosen = []
        for turn in range(4):
            given = await made.embed_batch([f"{text}, turn {turn}" for text in TEXTS])
            assert given.report is not None
            chosen.append(given.report.engine)
        assert [each.name for each in chosen] == ["dask", "local", "local", "local"]
        assert "times the predicted time, this process" in chosen[-1].reason


async def test_an_engine_is_not_judged_by_the_time_that_it_takes_to_start() -> None:
    async with cluster(a={"seconds_per_item": 0.01}) as made:
        await made.warm_up()
        engine = equip(made, seconds=3.0, start_seconds=0.5)
        for turn in range(3):
            if turn == 2:
                engine.start_seconds = 0.0  # it runs from now on, and no faster
            given = await made.embed_batch([f"{text}, turn {turn}" for text in TEXTS])
            assert given.report is not None
            assert given.report.engine.name == "dask"
