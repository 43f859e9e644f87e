"""What clients are told when the queue's file fails, and of models and nodes that there are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gateway_cluster import Cluster, cluster

from aiosollol.errors import (
    BadRequest,
    NodeUnavailable,
    NoNodeAvailable,
    ResponseError,
    RunnerFailed,
    ServerBusy,
    StorageError,
)
from aiosollol.gateway.middleware.error_responses import trouble
from aiosollol.gateway.options import GatewayOptions

pytestmark = pytest.mark.anyio

ADMIN = GatewayOptions(allow_admin=True)
SECRET = "/srv/secret/queue.db"


def failure(reason: str) -> StorageError:
    return StorageError(f"{SECRET}: something", source=SECRET, reason=reason)


@pytest.mark.parametrize(
    ("reason", "status", "retry_after", "words"),
    [
        ("full", 507, 0, "disk is full"),
        ("locked", 503, 1, "try again"),
        ("damaged", 503, 0, "damaged"),
        ("read-only", 503, 0, "cannot be written"),
        ("io", 503, 0, "cannot be used"),
    ],
)
def test_a_queue_that_fails(reason: str, status: int, retry_after: int, words: str) -> None:
    refusal, seconds = trouble(failure(reason), "/api/embed/batch")
    assert (refusal.status, seconds) == (status, retry_after)
    assert words in refusal.message
    assert SECRET not in refusal.message


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (BadRequest("n", 400, "words"), 400, 0),
        (BadRequest("n", 500, "words"), 500, 0),  # as Ollama sends it
        (ServerBusy("n", 503, "words"), 503, 1),
        (ServerBusy("n", 429, "words", retry_after=6.5), 503, 7),
        (NodeUnavailable("n", 502, "words"), 502, 1),
        (NodeUnavailable("n", 503, "words", retry_after=60.0), 503, 60),
        (NodeUnavailable("n", 504, "words", retry_after=0.0), 504, 1),
        (NodeUnavailable("n", 408, "words"), 503, 1),
        (RunnerFailed("n", 400, "words"), 500, 0),
        (ResponseError("n", 401, "words"), 500, 0),
    ],
    ids=lambda value: repr(value),
)
def test_what_a_node_answered(error: ResponseError, status: int, retry_after: int) -> None:
    for failure in (error, NoNodeAvailable("all failed", {}, [error])):
        refusal, seconds = trouble(failure, "/api/chat")
        assert (refusal.status, refusal.message, seconds) == (status, "words", retry_after)


class BrokenQueue:
    """A queue whose disk is full."""

    async def _fail(self, *_: Any, **__: Any) -> Any:
        raise failure("full")

    submit = status = cancel = retry = _fail


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/embed/batch"),
        ("GET", "/api/batch-status"),
        ("GET", "/api/embed/batch/1"),
        ("DELETE", "/api/embed/batch/1"),
        ("POST", "/api/embed/batch/1/retry"),
    ],
)
async def test_every_endpoint_of_the_queue_tells_it_and_logs_it(
    method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(app={"autobatch": BrokenQueue()}) as gateway:
        body = {"docs": ["a"], "model": "all-minilm"} if path.endswith("batch") else None
        answer = await gateway.ask(method, path, body)
        assert answer.status == 507
        assert "disk is full" in answer.json["error"]
        assert SECRET in caplog.text


# ---- what the original's client expects


async def test_the_originals_client_finds_its_fields(tmp_path: Path) -> None:
    """Of sollol 0.9.66: `embed` returns "embedding", and `batch_embed` counts by "count"."""
    from aiosollol.autobatch import AutoBatch

    async with cluster() as gateway:
        answer = await gateway.post("/api/embed", {"model": "all-minilm", "text": "a document"})
        assert answer.json["embedding"] == answer.json["embeddings"][0]
        plain = await gateway.post("/api/embed", {"model": "all-minilm", "input": "a document"})
        assert "embedding" not in plain.json
        async with (
            AutoBatch(gateway.pool, tmp_path / "queue.db") as queue,
            cluster(app={"autobatch": queue}) as other,
        ):
            submitted = await other.post("/api/embed/batch", {"docs": ["a", "b", "c"]})
            assert (submitted.status, submitted.json["count"]) == (202, 3)


# ---- models and nodes


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/api/copy", {}, 400, 'source "" is invalid'),
        ("POST", "/api/copy", {"source": "tiny-chat"}, 400, 'destination "" is invalid'),
        (
            "POST",
            "/api/copy",
            {"source": "no-such", "destination": "x"},
            404,
            'model "no-such" not found',
        ),
        ("DELETE", "/api/delete", {}, 400, "model is required"),
        ("DELETE", "/api/delete", {"model": "no-such"}, 404, "model 'no-such' not found"),
    ],
)
async def test_ollamas_words(method: str, path: str, body: Any, status: int, message: str) -> None:
    async with cluster(options=ADMIN) as gateway:
        answer = await gateway.ask(method, path, body)
        assert (answer.status, answer.json) == (status, {"error": message})


async def test_a_node_may_be_named_as_the_statistics_name_it() -> None:
    async with cluster(options=ADMIN) as gateway:
        (key,) = (await gateway.get("/api/stats")).json["nodes"]
        for name in (key, gateway.nodes[0].url.removeprefix("http://")):
            copied = await copy(gateway, name)
            assert copied.status == 200
        unknown = await copy(gateway, "127.0.0.1:1")
        assert unknown.status == 400
        assert key in unknown.json["error"]


async def copy(gateway: Cluster, node: str) -> Any:
    body = {"source": "tiny-chat", "destination": "second"}
    return await gateway.post(f"/api/copy?node={node}", body)


async def test_a_name_with_a_line_end_is_no_other_path() -> None:
    async with cluster() as gateway:
        answer = await gateway.get("/v1/models/a%0Ab")
        assert answer.status == 400
        assert answer.json["error"]["message"] == "invalid model name"
