"""A damaged file of a queue: no damaged data is taken for sound, and the rest stays usable."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from array import array
from pathlib import Path
from random import Random
from typing import Any

import pytest
from autobatch_files import EMBED, MODEL, TEXTS, fake_pool, vectors_of

from aiosollol import (
    ConfigError,
    StorageError,
    UnknownJob,
)
from aiosollol.autobatch import (
    AutoBatch,
    job_queries,
    schema,
    worker_queries,
)
from aiosollol.autobatch.jobs import (
    Document,
    Outcome,
)
from aiosollol.autobatch.pacing import Rules
from aiosollol.autobatch.result_queries import DAMAGED_VECTOR
from aiosollol.testing import fake_vector

pytestmark = pytest.mark.anyio


def vector(text: str) -> bytes:
    return bytes(fake_vector(EMBED.digest, text, EMBED.dim))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue with a job that is done, one that is half done, and one that is queued."""
    path = tmp_path_factory.mktemp("healthy") / "queue.db"
    connection = schema.open_database(str(path), 1.0)
    for name in ("done", "half", "queued"):
        job = job_queries.NewJob(name, MODEL, "{}", "{}", TEXTS)
        job_queries.submit(connection, job, Rules(), 1.0)
    for count in (200, 100):
        batch = worker_queries.take(connection, 1, count, 2.0)
        done = [(each, memoryview(array("f", fake(each)))) for each in batch.documents]
        worker_queries.settle(connection, Outcome(done=done), 3.0)
    connection.close()
    return path


def fake(document: Document) -> Any:
    assert document.text is not None
    return fake_vector(EMBED.digest, document.text, EMBED.dim)


@pytest.mark.parametrize("seed", range(40))
async def test_flipped_bytes_are_never_taken_for_data(
    tmp_path: Path, healthy: Path, seed: int
) -> None:
    path, random = tmp_path / "queue.db", Random(seed)
    shutil.copy(healthy, path)
    data = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 10, 200))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    with contextlib.suppress(StorageError, ConfigError, UnknownJob):
        async with AutoBatch(None, path) as queue:
            for job in ("done", "half", "queued"):
                found, errors = await vectors_of(queue, job)
                for at, row in found.items():
                    assert row == vector(TEXTS[at])
                assert set(errors.values()) <= {DAMAGED_VECTOR}
                if job == "done":
                    assert found.keys() | errors.keys() == set(range(len(TEXTS)))
            batch = await queue._open_database().change(worker_queries.take, 1, 1000, 1e9)
            assert {each.text for each in batch.documents} <= set(TEXTS)


async def test_a_damaged_text_fails_and_a_damaged_vector_is_told(
    tmp_path: Path, healthy: Path
) -> None:
    path = tmp_path / "queue.db"
    shutil.copy(healthy, path)
    for table, column, position in (("documents", "text", 150), ("vectors", "vector", 3)):
        key = (2 << job_queries.POSITION_BITS) + position
        execute_committed(path, f"UPDATE {table} SET {column} = x'00112233' WHERE key = {key}")
    async with fake_pool() as (pool, _), AutoBatch(pool, path) as queue:
        status = await queue.wait("half")
        assert (status.completed, status.failed) == (199, 1)
        found, errors = await vectors_of(queue, "half")
        assert found == {at: vector(text) for at, text in enumerate(TEXTS) if at not in (3, 150)}
        assert errors[3] == DAMAGED_VECTOR
        assert errors[150].startswith("StorageError: the text is damaged on the disk")


def execute_committed(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(sql).rowcount == 1


def without_documents(healthy: Path) -> bytes:
    """The file, with the beginning of a table overwritten."""
    data = bytearray(healthy.read_bytes())
    with contextlib.closing(sqlite3.connect(healthy)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'documents'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    start = (page - 1) * size
    data[start : start + 100] = b"\xff" * 100
    return bytes(data)


async def test_damage_is_told_at_the_start(tmp_path: Path, healthy: Path) -> None:
    path, data = tmp_path / "queue.db", without_documents(healthy)
    path.write_bytes(data)
    with pytest.raises(StorageError, match="left unchanged; restore it from a backup") as caught:
        await AutoBatch(None, path).start()
    assert caught.value.reason == "damaged"
    assert path.read_bytes() == data
