"""Collections of real Dask: read, embedded and written by workers, nothing of it passing here."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from dask_parts import MODEL, NAME, PATIENCE, need, scheduler, vector

need("distributed", "pyarrow", "pandas")

import pandas  # noqa: E402 (what follows `need`)
import pyarrow.parquet  # noqa: E402
from dask import bag, dataframe  # noqa: E402

from aiosollol import InvalidInput, NoNodeAvailable, OllamaPool  # noqa: E402
from aiosollol.errors import EngineError, RequestFailed  # noqa: E402
from aiosollol.testing import FakeModel, FakeOllama, FakeOllamaProcess  # noqa: E402

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def cluster(anyio_backend: str) -> AsyncIterator[str]:
    async with scheduler(2) as address:
        yield address


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def check(directory: pathlib.Path, texts: list[str], column: str = "text") -> None:
    """The files have exactly these texts, in order, each with its vector."""
    table = pyarrow.parquet.read_table(directory)
    assert table.column(column).to_pylist() == texts
    floats = table.column("embedding").combine_chunks().flatten().to_numpy()
    assert floats.tobytes() == b"".join(map(vector, texts))


async def test_a_bag(cluster: str, tmp_path: pathlib.Path) -> None:
    texts = [f"passage {index}" for index in range(3000)]
    lines = bag.from_sequence(texts, npartitions=6).map(str.upper)
    told: list[tuple[int, int]] = []
    async with (
        FakeOllama(models=[MODEL]) as one,
        FakeOllama(models=[MODEL]) as two,
        OllamaPool([one.url, two.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        report = await pool.embed_bag(
            NAME, lines, tmp_path / "out", on_progress=lambda *each: told.append(each)
        )
        check(tmp_path / "out", [text.upper() for text in texts])
        assert report.files == tuple(f"part-{index:05d}.parquet" for index in range(6))
        assert sorted(os.listdir(tmp_path / "out")) == list(report.files)
        assert (report.rows, report.failed, report.dim) == (3000, 0, 4)
        assert sum(share.items for share in report.nodes.values()) == 3000
        assert (report.engine.workers, report.engine.reruns) == (2, 0)
        assert told == [(index + 1, 6) for index in range(6)]
        assert max(one.max_in_flight, two.max_in_flight) <= 2
        assert pool.get_stats()["vectors"] == one.items + two.items


async def test_a_dataframe_with_gaps(cluster: str, tmp_path: pathlib.Path) -> None:
    bodies = [None if index % 50 == 7 else f"text {index}" for index in range(500)]
    frame = pandas.DataFrame({"id": range(500), "body": bodies})
    collection = dataframe.from_pandas(frame, npartitions=3)
    async with (
        FakeOllama(models=[MODEL]) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        with pytest.raises(RequestFailed, match=r"item \d+ of partition \d .*must be a string"):
            await pool.embed_dataframe(NAME, collection, "body", tmp_path)
        for name in os.listdir(tmp_path):
            pyarrow.parquet.read_table(tmp_path / name)  # what is there is whole
        report = await pool.embed_dataframe(
            NAME, collection, "body", tmp_path, on_error="return", overwrite=True
        )
        assert (report.rows, report.failed) == (500, 10)
        again = pandas.read_parquet(tmp_path)
        assert list(again.id) == list(range(500))
        for body, embedding, error in zip(again.body, again.embedding, again.error, strict=True):
            if isinstance(body, str):
                assert embedding.tobytes() == vector(body)
                assert not isinstance(error, str)
            else:
                assert embedding is None
                assert "must be a string" in error


async def test_a_directory_with_files_is_left_alone(cluster: str, tmp_path: pathlib.Path) -> None:
    async with (
        FakeOllama(models=[MODEL]) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        await pool.embed_bag(NAME, bag.from_sequence("abcd", npartitions=2), tmp_path)
        one = bag.from_sequence("e", npartitions=1)
        with pytest.raises(InvalidInput, match=r"has 2 files such as part-00000.*overwrite=True"):
            await pool.embed_bag(NAME, one, tmp_path)
        check(tmp_path, ["a", "b", "c", "d"])
        (tmp_path / "notes.txt").write_text("mine")
        await pool.embed_bag(NAME, one, tmp_path, overwrite=True)
        assert sorted(os.listdir(tmp_path)) == ["notes.txt", "part-00000.parquet"]


async def test_a_worker_that_is_killed_while_it_writes(tmp_path: pathlib.Path) -> None:
    texts = [f"passage {index}" for index in range(10_000)]
    async with (
        # Not so fast that all is done before we hear of it.
        FakeOllamaProcess(models=[MODEL], slots=2, seconds_per_item=0.0005) as node,
        scheduler(2) as address,
        OllamaPool([node.url], enable_dask=True, dask_address=address) as pool,
    ):
        await pool.embed_batch(NAME, ["first"], engine="dask")
        engine: Any = pool._engine_batches._engines["dask"]
        workers = await engine._session.link.client.run(os.getpid)
        doomed = list(workers.values())[:1]

        def kill(written: int, _: int) -> None:
            while written > 3 and doomed:
                os.kill(doomed.pop(), signal.SIGKILL)

        lines = bag.from_sequence(texts, npartitions=20)
        report = await pool.embed_bag(NAME, lines, tmp_path, on_progress=kill)
        assert not doomed
        assert report.engine.reruns >= 1
        check(tmp_path, texts)
        assert sorted(os.listdir(tmp_path)) == list(report.files)


async def test_a_collection_is_cancelled(cluster: str, tmp_path: pathlib.Path) -> None:
    texts = [f"passage {index}" for index in range(2000)]
    async with (
        FakeOllama(models=[MODEL]) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        begun = asyncio.Event()

        def stall(*_: int) -> None:
            node.seconds_per_item = 1000.0
            begun.set()

        lines = bag.from_sequence(texts, npartitions=20)
        writing = asyncio.create_task(pool.embed_bag(NAME, lines, tmp_path, on_progress=stall))
        await asyncio.wait_for(begun.wait(), PATIENCE)
        await until(lambda: node.in_flight)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await until(lambda: node.in_flight == 0)
        node.seconds_per_item = 0.0
        report = await pool.embed_bag(NAME, lines, tmp_path, overwrite=True)
        check(tmp_path, texts)
        assert sorted(os.listdir(tmp_path)) == list(report.files)


def memory() -> int:
    """Bytes of this process that are in memory."""
    pages = pathlib.Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def chapter(number: int) -> list[str]:
    return [f"chapter {number}, passage {index} " + "and so on " * 20 for index in range(2000)]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
async def test_the_clients_memory_stays_flat(cluster: str, tmp_path: pathlib.Path) -> None:
    wide = FakeModel(NAME, dim=512)
    async with (
        FakeOllamaProcess(models=[wide], slots=2) as one,
        FakeOllamaProcess(models=[wide], slots=2) as two,
        OllamaPool([one.url, two.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        few = bag.from_sequence(range(2), npartitions=2).map(chapter).flatten()
        await pool.embed_bag(NAME, few, tmp_path / "few")
        before, most = memory(), 0

        async def look() -> None:
            nonlocal most
            while True:
                most = max(most, memory())
                await asyncio.sleep(0.02)

        many = bag.from_sequence(range(25), npartitions=25).map(chapter).flatten()
        looking = asyncio.create_task(look())
        report = await pool.embed_bag(NAME, many, tmp_path / "many")
        looking.cancel()
        assert report.rows == 50_000
        vectors = 50_000 * 512 * 4
        assert most - before < vectors / 5


async def test_what_cannot_be(cluster: str, tmp_path: pathlib.Path) -> None:
    lines = bag.from_sequence("ab", npartitions=1)
    async with FakeOllama(models=[MODEL]) as node:
        async with OllamaPool([node.url]) as pool:
            with pytest.raises(EngineError, match="enable_dask=True"):
                await pool.embed_bag(NAME, lines, tmp_path)
        async with OllamaPool([node.url], enable_dask=True, dask_address=cluster) as pool:
            with pytest.raises(InvalidInput, match=r"dask\.bag\.Bag or .*, not \['a'\]"):
                await pool.embed_bag(NAME, ["a"], tmp_path)
            with pytest.raises(InvalidInput, match="on_error"):
                await pool.embed_bag(NAME, lines, tmp_path, on_error="no")  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match="column"):
                await pool.embed_dataframe(NAME, lines, 3, tmp_path)  # type: ignore[arg-type]
            (tmp_path / "file").write_text("")
            with pytest.raises(InvalidInput, match="cannot write to"):
                await pool.embed_bag(NAME, lines, tmp_path / "file")
            with pytest.raises(EngineError, match="the source broke"):
                await pool.embed_bag(NAME, lines.map(broken), tmp_path / "out")
            node.remove_model(NAME)
            with pytest.raises((NoNodeAvailable, RequestFailed), match=NAME):
                await pool.embed_bag(NAME, lines, tmp_path / "out")


def broken(_: str) -> str:
    raise RuntimeError("the source broke")
