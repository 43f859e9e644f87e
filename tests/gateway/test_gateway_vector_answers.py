"""Answers with many vectors: how many texts, how many bytes, and that pieces are the whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gateway_cluster import Cluster, cluster

from aiosollol.gateway import vector_answers
from aiosollol.gateway.options import GatewayOptions
from aiosollol.gateway.vector_answers import AnswerMemory
from aiosollol.wire.ollama.server_requests import Refusal

pytestmark = pytest.mark.anyio

MODEL = "all-minilm"  # 384 numbers


def asked(path: str, texts: list[str]) -> tuple[str, dict[str, Any]]:
    """A request to an endpoint; "base64" and "original" are two of another form."""
    match path:
        case "base64":
            return "/v1/embeddings", {"model": MODEL, "input": texts, "encoding_format": "base64"}
        case "original":
            return "/api/embed", {"model": MODEL, "text": texts}
        case _:
            return path, {"model": MODEL, "input": texts}


PATHS = ["/api/embed", "/v1/embeddings", "base64", "original"]


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("path", PATHS)
async def test_pieces_are_the_same_answer(
    path: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster() as gateway:
        where, body = asked(path, [f"text {number}" for number in range(count)])
        at_once = (await gateway.post(where, body)).json
        monkeypatch.setattr(vector_answers, "_WHOLE", 0)
        for piece in (0, 4_000, 1 << 20):
            monkeypatch.setattr(vector_answers, "_PIECE", piece)
            answer = await gateway.post(where, body)
            assert int(answer.headers["Content-Length"]) == len(answer.body)
            assert answer.headers["X-Sollol-Node"]
            in_pieces = json.loads(answer.body)
            for each in (at_once, in_pieces):
                each.pop("total_duration", None)
            assert in_pieces == at_once


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("options", "count", "status"),
    [
        ({"max_texts": 3}, 3, 200),
        ({"max_texts": 3}, 4, 413),
        ({"max_answer_bytes": 200_000}, 10, 200),
        ({"max_answer_bytes": 200_000}, 110, 413),  # before any work
        ({"max_answer_bytes": 3_000}, 2, 413),
    ],
)
async def test_what_is_too_much(
    path: str, options: dict[str, int], count: int, status: int
) -> None:
    async with cluster(options=GatewayOptions(**options)) as gateway:  # type: ignore[arg-type]
        where, body = asked(path, ["the same text"] * count)
        answer = await gateway.post(where, body)
        assert answer.status == status, answer.body
        if status == 413:
            assert next(iter(options)).encode() in answer.body
            assert vectors(gateway) == 0 or count == 2


def vectors(gateway: Cluster) -> int:
    count: int = gateway.pool.get_stats()["vectors"]
    return count


async def test_unknown_lengths_are_counted_as_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cluster(options=GatewayOptions(max_answer_bytes=20_000)) as gateway:
        monkeypatch.setattr(gateway.pool.gateway_access, "dim_of", lambda *_: 0)
        answer = await gateway.post(*asked("/api/embed", [f"text {n}" for n in range(20)]))
        assert (answer.status, b"max_answer_bytes=20,000" in answer.body) == (413, True)
        assert (await gateway.post(*asked("/api/embed", ["a", "b"]))).status == 200


MIB = 1 << 20


@pytest.mark.parametrize(
    ("held", "own", "size", "status"),
    [
        (0, 0, 20 * MIB, 0),
        (0, 0, 20 * MIB + 1, 413),
        (0, 19 * MIB, 2 * MIB, 413),
        (19 * MIB, 0, 8 * MIB, 0),  # small ones are not refused for others
        (19 * MIB, 0, 8 * MIB + 1, 503),
        (19 * MIB, 8 * MIB, 1 * MIB, 0),
        (19 * MIB, 8 * MIB, 1 * MIB + 1, 503),
    ],
)
def test_all_answers_together(held: int, own: int, size: int, status: int) -> None:
    memory = AnswerMemory(20 * MIB)
    memory.held = held
    if status:
        with pytest.raises(Refusal, match="max_answer_bytes") as caught:
            memory.take("a", size, own)
        assert caught.value.status == status
    else:
        memory.take("a", size, own)
    assert memory.held == held + (0 if status else size)


@pytest.mark.parametrize(
    ("others", "size", "is_refused"),
    [
        (0, 18, False),  # a single one may be as large as the limit
        (5, 5, False),
        (5, 6, False),  # small
        (9, 9, True),
        (9, 8, False),
    ],
)
def test_answers_to_one_client(others: int, size: int, is_refused: bool) -> None:
    memory = AnswerMemory(20 * MIB)
    memory.take("a", others * MIB, 0)
    if is_refused:
        with pytest.raises(Refusal, match="half of max_answer_bytes") as caught:
            memory.take("a", size * MIB, 0)
        assert caught.value.status == 503
    else:
        memory.take("a", size * MIB, 0)
        memory.release("a", size * MIB)
    memory.take("b", 9 * MIB, 0)
    memory.release("a", others * MIB)
    memory.take("a", 11 * MIB, 0)
    memory.release("a", 11 * MIB)
    memory.release("b", 9 * MIB)
    assert memory.held == 0
