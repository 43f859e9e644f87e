"""Jobs that are cancelled or expire, and the limits of a queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from autobatch_bench import MODEL, bench, everything, vectors

from aiosollol import (
    BadRequest,
    InvalidInput,
    LimitExceeded,
    QueueFull,
    UnknownJob,
)
from aiosollol.autobatch import AutoBatch

pytestmark = pytest.mark.anyio


async def test_cancelling_drops_what_is_queued(tmp_path: Path) -> None:
    async with bench(tmp_path, max_batch_size=2) as b:
        b.pool.active = 1
        job = await b.submit(5)
        other = await b.submit(1)
        await b.clock.pass_until(b.clock.time + 60.0)
        status = await b.queue.cancel(job)
        assert (status.state, status.completed, status.queued) == ("cancelled", 2, 0)
        assert (await b.queue.cancel(job)) == status  # again, without effect
        assert sorted(await vectors(b.queue, job)) == [0, 1]
        with pytest.raises(InvalidInput, match="was cancelled"):
            await b.queue.retry(job)
        b.pool.active = 0
        await b.clock.asleep()
        await b.clock.pass_time()
        assert (await b.queue.status(other)).state == "completed"
        assert [len(batch) for batch in b.pool.batches] == [2, 1]


async def test_cancelling_during_a_batch_stores_nothing_of_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.pool.gate.clear()
        job = await b.queue.submit(["text"], MODEL)
        await b.pool.entered.wait()
        assert (await b.queue.cancel(job)).state == "cancelled"
        b.pool.gate.set()
        await b.clock.asleep()
        assert await everything(b.queue, job) == []
        assert (await b.queue.status(job)).completed == 0


async def test_results_are_kept_for_a_time(tmp_path: Path) -> None:
    async with bench(tmp_path, keep_results=3600.0) as b:
        job = await b.submit(3)
        await b.clock.pass_until(b.clock.time + 3590.0)
        status = await b.queue.status(job)
        assert status.completed_at is not None
        assert status.expires_at == status.completed_at + 3600.0
        later = await b.submit(1)
        await b.clock.pass_until(b.clock.time + 80.0)
        with pytest.raises(UnknownJob):
            await b.queue.status(job)
        assert (await b.queue.status(later)).completed == 1
        assert await b.queue._open_database().read(
            lambda c: c.execute("SELECT count(*) FROM vectors").fetchone()
        ) == (1,)


async def test_clearing_away_is_done_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiosollol.autobatch.worker_queries._SWEPT", 2)
    async with bench(tmp_path, keep_results=10.0) as b:
        b.pool.wrong = lambda text: BadRequest("a", 400, "bad") if text == "text 1" else None
        await b.submit(9)
        await b.clock.pass_until(b.clock.time + 30.0)
        left = await b.queue._open_database().read(
            lambda c: [
                c.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("jobs", "documents", "vectors", "expired", "groups")
            ]
        )
        assert left == [0, 0, 0, 0, 0]


async def test_quotas(tmp_path: Path) -> None:
    async with bench(tmp_path, max_documents=10, max_bytes=100, min_batch_size=50) as b:
        b.pool.active = 1
        await b.submit(8)
        with pytest.raises(QueueFull, match="8 documents of 48 bytes are queued") as caught:
            await b.queue.submit(["a", "b", "c"], MODEL)
        assert caught.value.retry_after == 60.0
        with pytest.raises(QueueFull) as caught:
            await b.queue.submit(["x" * 53], MODEL)
        assert caught.value.retry_after == 60.0
        for docs in (["x"] * 11, ["x" * 101]):
            with pytest.raises(LimitExceeded, match="exceed the limits of the queue"):
                await b.queue.submit(docs, MODEL)
        assert (await b.queue.status()).job_count == 1
        await b.submit(2)
        await b.clock.pass_until(b.clock.time + 60.0)
        await b.submit(10)


async def test_quotas_count_what_is_tried_again(tmp_path: Path) -> None:
    async with bench(tmp_path, max_documents=3) as b:
        b.pool.wrong = lambda _: BadRequest("a", 400, "bad")
        job = await b.submit(2)
        b.pool.active = 1
        await b.submit(2)
        with pytest.raises(QueueFull):
            await b.queue.retry(job)
        assert (await b.queue.status(job)).failed == 2


@pytest.mark.parametrize(
    ("limits", "before", "docs", "named"),
    [
        ({"owner_jobs": 2}, [["a"], ["b"]], ["c"], "owner_jobs=2"),
        ({"owner_documents": 3}, [["a", "b"]], ["c", "d"], "owner_documents=3"),
        ({"owner_bytes": 10}, [["a" * 8]], ["b" * 3], "owner_bytes=10"),
        ({"max_documents": 3}, [["a", "b"]], ["c", "d"], "max_documents=3"),
        ({"max_bytes": 10}, [["a" * 8]], ["b" * 3], "max_bytes=10"),
    ],
)
async def test_an_owner_over_a_quota_waits_while_others_submit(
    tmp_path: Path, limits: dict[str, int], before: list[list[str]], docs: list[str], named: str
) -> None:
    async with AutoBatch(None, tmp_path / "queue.db", **limits) as queue:  # type: ignore[arg-type]
        for given in before:
            await queue.submit(given, MODEL, owner="ann")
        with pytest.raises(QueueFull, match=named) as caught:
            await queue.submit(docs, MODEL, owner="ann")
        assert caught.value.retry_after == 60.0
        assert (await queue.status(owner="ann")).job_count == len(before)
        if named.startswith("owner"):
            await queue.submit(docs, MODEL, owner="bob")
            await queue.submit(docs, MODEL)


@pytest.mark.parametrize(
    ("limits", "docs", "owner", "limit"),
    [
        ({"max_documents": 2}, ["a"] * 3, None, "max_documents"),
        ({"max_bytes": 2}, ["abc"], None, "max_bytes"),
        ({"max_bytes": 2}, ["é", "é"], "ann", "max_bytes"),
        ({"owner_documents": 2}, ["a"] * 3, "ann", "owner_documents"),
        ({"owner_bytes": 2}, ["abc"], "ann", "owner_bytes"),
    ],
)
async def test_a_job_larger_than_a_limit(
    tmp_path: Path, limits: dict[str, int], docs: list[str], owner: str | None, limit: str
) -> None:
    async with AutoBatch(None, tmp_path / "queue.db", **limits) as queue:  # type: ignore[arg-type]
        with pytest.raises(LimitExceeded, match=f"{limit}=2") as caught:
            await queue.submit(docs, MODEL, owner=owner)
        assert caught.value.limit == limit
        assert (await queue.status()).job_count == 0


async def test_retrying_counts_for_the_owner_of_the_job(tmp_path: Path) -> None:
    async with bench(tmp_path, owner_documents=3) as b:
        b.pool.wrong = lambda _: BadRequest("a", 400, "bad")
        job = await b.submit(2, owner="ann")
        b.pool.active = 1
        await b.submit(2, owner="ann")
        for owner in ("ann", None):
            with pytest.raises(QueueFull, match="owner_documents=3"):
                await b.queue.retry(job, owner=owner)


def nested(depth: int, opening: str, closing: str) -> Any:
    return json.loads(opening * depth + "1" + closing * depth)


@pytest.mark.parametrize("name", ["metadata", "options"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (nested(62, '{"a":', "}"), None),
        (nested(64, '{"a":', "}"), "nested more than 64 deep|sent as JSON"),
        (nested(260, '{"a":', "}"), "nested more than 64 deep|sent as JSON"),
        (nested(260, "[", "]"), "nested more than 64 deep|sent as JSON"),
        (2**64 - 1, None),
        (2**64, "JSON values|sent as JSON"),
        (-(2**63) - 1, "JSON values|sent as JSON"),
        pytest.param(10**5000, "JSON values|sent as JSON", id="5000 digits"),
        ("\ud800", "JSON values|sent as JSON"),
        ({"\udfff": 1}, "JSON values|sent as JSON"),
        (float("nan"), "JSON values|sent as JSON"),
        ("a" * 65_000, None),
        ("a" * 65_600, "more than 65,536 bytes"),
        ("é" * 33_000, "more than 65,536 bytes"),
        (object(), "JSON values|sent as JSON"),
    ],
)
async def test_what_is_stored_can_be_written_out_again(
    tmp_path: Path, name: str, value: Any, problem: str | None
) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        await queue.submit(["a"], MODEL)
        given: Any = {name: {"deep": value}}
        if problem is None:
            await queue.submit(["b"], MODEL, **given)
        else:
            with pytest.raises(InvalidInput, match=problem):
                await queue.submit(["b"], MODEL, **given)
        status = await queue.status()
        assert status.job_count == (2 if problem is None else 1)
        orjson.dumps(status.as_dict())


@pytest.mark.parametrize(
    "stored", ['{"a":' * 260 + "1" + "}" * 260, '{"a":' * 90_000 + "1" + "}" * 90_000, "{"]
)
async def test_jobs_of_an_earlier_version_do_not_break_the_status(
    tmp_path: Path, stored: str
) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        job = await queue.submit(["a"], MODEL)
        await queue.submit(["b"], MODEL, metadata={"kept": 1})
        await queue._open_database().change(
            lambda c: c.execute("UPDATE jobs SET metadata = ? WHERE id = ?", (stored, job))
        )
        found = orjson.loads(orjson.dumps((await queue.status()).as_dict()))
        assert [each["metadata"] for each in found["jobs"]] == [
            {"kept": 1, "model": MODEL},
            {"model": MODEL},
        ]
