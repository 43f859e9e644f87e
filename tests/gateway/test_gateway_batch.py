"""Documents that are queued through the gateway, and their vectors in three forms."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_cluster import MODELS, Cluster, served

from aiosollol import OllamaPool
from aiosollol.autobatch import AutoBatch
from aiosollol.errors import StorageError
from aiosollol.gateway.app import make_app
from aiosollol.gateway.endpoints.batch_jobs import BINARY, NDJSON, accepted
from aiosollol.testing import FakeOllama

numpy = pytest.importorskip("numpy")
pytestmark = pytest.mark.anyio

MODEL = "all-minilm"


@asynccontextmanager
async def queueing(path: Path, **options: Any) -> AsyncIterator[tuple[Cluster, AutoBatch]]:
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(FakeOllama(models=MODELS, poison=["poison"]))
        pool = await stack.enter_async_context(OllamaPool([node.url]))
        queue = AutoBatch(pool, path / "queue.db", **{"interval": 0.05, **options})
        await stack.enter_async_context(queue)
        url = await stack.enter_async_context(served(make_app(pool, autobatch=queue)))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Cluster(url, pool, [node], session), queue


async def test_a_job_from_its_documents_to_its_vectors(tmp_path: Path) -> None:
    async with queueing(tmp_path) as (gateway, queue):
        docs = [f"document {number}" for number in range(300)]
        docs[7] = "poison"
        answer = await gateway.post("/api/embed/batch", {"docs": docs, "model": MODEL})
        assert answer.status == 202
        job = answer.json["job_id"]
        await queue.wait(job)
        status = (await gateway.get(f"/api/batch-status?job={job}")).json
        assert status["status"] == "completed"
        assert status["progress"]["failed_items"] == 1
        everything = (await gateway.get("/api/batch-status")).json
        assert everything["jobs"][0]["job_id"] == job
        assert everything["dask"] == {"enabled": False}

        node = gateway.nodes[0]
        url = f"/api/embed/batch/{job}"
        whole = (await gateway.get(url)).json
        assert whole["status"] == "completed"
        assert len(whole["embeddings"]) == 300
        assert list(whole["errors"]) == ["7"]
        lines = await gateway.get(url, Accept=NDJSON)
        assert lines.headers["Content-Type"] == NDJSON
        raw = await gateway.get(url, Accept=BINARY)
        assert (raw.headers["X-Sollol-Dim"], raw.headers["X-Sollol-Items"]) == ("384", "300")
        rows = numpy.frombuffer(raw.body, "<f4").reshape(300, 384)
        for index, (doc, line) in enumerate(zip(docs, lines.lines, strict=True)):
            assert line["index"] == index
            if index == 7:
                assert "error" in line
                assert whole["embeddings"][7] is None
                assert math.isnan(rows[7][0])
                continue
            expected = node.vector(MODEL, doc)
            assert numpy.asarray(line["embedding"], "f4").tobytes() == expected
            assert numpy.asarray(whole["embeddings"][index], "f4").tobytes() == expected
            assert rows[index].tobytes() == expected


async def test_a_job_that_is_under_way_has_no_raw_vectors_yet(tmp_path: Path) -> None:
    async with queueing(tmp_path, interval=3600, min_batch_size=100) as (gateway, _):
        answer = await gateway.post("/api/embed/batch", {"docs": ["a"] * 3, "model": MODEL})
        url = f"/api/embed/batch/{answer.json['job_id']}"
        assert (await gateway.get(url, Accept=BINARY)).status == 409
        partial = (await gateway.get(url)).json
        assert partial["embeddings"] == [None] * 3
        assert (await gateway.get(url, Accept=NDJSON)).body == b""
        cancelled = (await gateway.ask("DELETE", url)).json
        assert cancelled["status"] == "cancelled"
        raw = await gateway.get(url, Accept=BINARY)
        assert (raw.status, raw.body, raw.headers["X-Sollol-Dim"]) == (200, b"", "0")


@pytest.mark.parametrize("accept", ["application/json", NDJSON, BINARY])
async def test_results_that_break_off_do_not_look_whole(
    tmp_path: Path, accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with queueing(tmp_path) as (gateway, queue):
        body = {"docs": [f"document {n}" for n in range(300)], "model": MODEL}
        job = (await gateway.post("/api/embed/batch", body)).json["job_id"]
        await queue.wait(job)
        results = queue.results

        async def breaking(job: str, *, owner: str | None) -> AsyncIterator[Any]:
            async for page in results(job, owner=owner):
                yield page
                raise StorageError("the disk is gone", source="queue.db", reason="damaged")

        monkeypatch.setattr(queue, "results", breaking)
        with pytest.raises(aiohttp.ClientError):
            await gateway.get(f"/api/embed/batch/{job}", Accept=accept)


async def test_a_job_can_be_retried(tmp_path: Path) -> None:
    async with queueing(tmp_path) as (gateway, queue):
        docs = ["poison", "fine"]
        job = (await gateway.post("/api/embed/batch", {"docs": docs, "model": MODEL})).json[
            "job_id"
        ]
        await queue.wait(job)
        gateway.nodes[0].poison.clear()
        answer = await gateway.post(f"/api/embed/batch/{job}/retry")
        assert answer.json["retried"] == 1
        await queue.wait(job)
        assert (await gateway.get(f"/api/embed/batch/{job}")).json["errors"] == {}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        ([], 400),
        ({"docs": "text"}, 400),
        ({"docs": [1]}, 400),
        ({"docs": ["x"], "model": 7}, 400),
        ({"docs": ["x"], "model": MODEL, "dimensions": -1}, 400),
        ({"docs": ["x"] * 50, "model": MODEL}, 413),
        ({"docs": ["x"], "model": MODEL, "metadata": {"a": "a" * 70_000}}, 413),
        ({"docs": ["x"], "model": MODEL, "options": {"a": "a" * 70_000}}, 413),
        (b'{"docs":["x"],"model":"m","metadata":' + b'{"a":' * 260 + b"1" + b"}" * 261, 400),
        (b'{"docs":["x"],"model":"m","options":' + b'{"a":' * 900 + b"1" + b"}" * 901, 400),
        (b'{"docs":["x"],"model":"m","metadata":{"a":' + b"1" * 5000 + b"}}", 400),
        ({"docs": ["x"] * 8, "model": MODEL}, 429),
    ],
)
async def test_what_cannot_be_queued(tmp_path: Path, body: Any, status: int) -> None:
    async with queueing(tmp_path, interval=3600, min_batch_size=100, max_documents=10) as (
        gateway,
        _,
    ):
        await gateway.post("/api/embed/batch", {"docs": ["y"] * 8, "model": MODEL})
        answer = await gateway.post("/api/embed/batch", body)
        assert answer.status == status
        assert (await gateway.get("/api/batch-status")).status == 200
        assert list(answer.json) == ["error"]
        assert ("Retry-After" in answer.headers) == (status == 429)


async def test_unknown_jobs_and_no_queue_at_all(tmp_path: Path) -> None:
    async with queueing(tmp_path) as (gateway, _):
        for path in ("/api/batch-status?job=nobody", "/api/embed/batch/nobody"):
            answer = await gateway.get(path)
            assert answer.status == 404
            assert "nobody" in answer.json["error"]
        async with served(make_app(gateway.pool)) as url:
            without = Cluster(url, gateway.pool, [], gateway.session)
            assert (await without.post("/api/embed/batch", {"docs": ["x"]})).status == 501


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json, application/x-ndjson", "json"),
        ("application/x-ndjson;q=0.9", NDJSON),
        ("text/html, application/octet-stream", BINARY),
    ],
)
def test_the_form_is_the_first_that_is_accepted(accept: str, kind: str) -> None:
    assert kind in accepted(accept)
