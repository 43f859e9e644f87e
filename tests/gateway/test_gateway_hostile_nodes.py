"""Answers of nodes that are valid JSON and no sense: the gateway answers without a 500."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from gateway_cluster import cluster

from aiosollol.gateway.endpoints.admin import Progress
from aiosollol.gateway.endpoints.ollama import _numbers
from aiosollol.wire.ollama.server_responses import json_answer

pytestmark = pytest.mark.anyio

SECRET = "a prompt"
DEEP = "[" * 500 + "]" * 500
BIG = "9" * 5000


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/v1/models"])
@pytest.mark.parametrize(
    ("entry", "is_listed"),
    [
        ('{"name":"odd","x":[1]}', True),
        (f'{{"name":"odd","x":{DEEP}}}', False),
        (f'{{"name":"odd","details":{{"a":{DEEP}}}}}', False),
        ('{"name":"odd","size":18446744073709551616}', True),
        ('{"name":"odd","modified_at":["a"],"details":7,"digest":{}}', True),
        ('{"name":7}', False),
    ],
)
async def test_models_that_cannot_be_written_out_are_left_out(
    path: str, entry: str, is_listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster() as gateway:
        body = f'{{"models":[{{"name":"plain"}},{entry}]}}'.encode()

        async def ask(*args: Any, **more: Any) -> bytes:
            return body

        monkeypatch.setattr(gateway.pool.gateway_access, "ask", ask)
        answer = await gateway.get(path)
        assert answer.status == 200
        key, name = ("data", "id") if path == "/v1/models" else ("models", "name")
        names = [model[name] for model in answer.json[key]]
        if path == "/v1/models":  # which holds nothing else of them
            is_listed = '"name":"odd"' in entry
        assert sorted(names, reverse=True) == (["plain", "odd"] if is_listed else ["plain"])


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("0.33.0", [0, 33, 0]),
        ("0.33.0-rc1", [0, 33, 0]),
        ("1.2.3+build", [1, 2, 3]),
        ("0.²", [0]),
        ("٣.٤", []),
        ("", []),
        ("...", []),
        ("v1", []),
        ("-1", []),
    ],
)
def test_odd_versions(version: str, numbers: list[int]) -> None:
    assert _numbers(version) == numbers


@pytest.mark.parametrize("version", [BIG, f"0.{BIG}.1", "1." * 5000])
def test_long_versions(version: str) -> None:
    assert len(_numbers(version)) <= 64


def test_progress_of_impossible_sizes() -> None:
    progress = Progress(["a", "b"])
    most = 2**64 - 1
    for node in "ab":
        line = {"status": "pulling", "digest": "d", "total": most, "completed": most}
        assert json_answer(progress.feed(node, line)).status == 200


async def test_a_500_has_its_traceback_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as gateway:

        async def fail(*args: Any, **more: Any) -> Any:
            raise ValueError(SECRET) from KeyError(SECRET)

        monkeypatch.setattr(gateway.pool, "embed_batch", fail)
        body = {"model": "all-minilm", "input": ["a", "b"]}
        for count in (1, 2):
            answer = await gateway.post("/api/embed", body)
            assert answer.status == 500
            assert answer.headers["X-Request-ID"] in answer.json["error"]
            records = [r for r in caplog.records if r.levelno == logging.ERROR]
            assert answer.headers["X-Request-ID"] in records[-1 if count == 2 else 0].getMessage()
    assert caplog.text.count("traceback of request") == 1  # of the same kind
    assert "in embed\n" in caplog.text
    assert "KeyError" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("length", [383, 384, 385, 768])
@pytest.mark.parametrize(
    ("path", "field"),
    [("/api/embed", "input"), ("/api/embeddings", "prompt"), ("/v1/embeddings", "input")],
)
async def test_single_texts_get_vectors_of_the_promised_length(
    path: str, field: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(settings={"max_retries": 0}) as gateway:
        wrong = {
            "/api/embed": {"embeddings": [[0.5] * length]},
            "/api/embeddings": {"embedding": [0.5] * length},
            "/v1/embeddings": {"data": [{"embedding": [0.5] * length, "index": 0}]},
        }[path]

        async def request(method: str, where: str, *args: Any, **more: Any) -> bytes:
            return json_answer(wrong if where == path else {}).body

        transport = gateway.pool.gateway_access._transport_of(next(iter(gateway.pool.view.nodes)))
        monkeypatch.setattr(transport, "request", request)
        answer = await gateway.post(path, {"model": "all-minilm", field: "a"})
        assert answer.status == (200 if length == 384 else 502), answer.body
