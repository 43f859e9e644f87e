"""Names of models through pool and gateway: those by which Ollama finds a model, and others."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_cluster import cluster

from aiosollol import InvalidInput, ModelNotFound
from aiosollol.testing import FakeModel, FakeOllama

pytestmark = pytest.mark.anyio

MODELS = (
    FakeModel("All-MiniLM", dim=8),
    FakeModel("Me/Tiny-Chat:Q4", kind="chat"),
)
HELLO = {"messages": [{"role": "user", "content": "hello"}], "stream": False}
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("/api/embed", "embed", {"input": "a"}),
    ("/api/embed", "embed", {"input": ["a", "b"]}),
    ("/api/embeddings", "embed", {"prompt": "a"}),
    ("/v1/embeddings", "embed", {"input": ["a", "b"]}),
    ("/api/chat", "chat", HELLO),
    ("/api/generate", "chat", {"prompt": "hello", "stream": False}),
    ("/api/show", "chat", {}),
    ("/v1/chat/completions", "chat", HELLO),
    ("/v1/completions", "chat", {"prompt": "hello"}),
    ("/v1/responses", "chat", {"input": "hello"}),
    ("/v1/messages", "chat", {**HELLO, "max_tokens": 5}),
]
NAMES = {
    "embed": [
        "all-minilm",
        "ALL-MINILM:latest",
        "library/All-MiniLM",
        "registry.ollama.ai/library/all-minilm",
    ],
    "chat": ["me/tiny-chat:q4", "ME/tiny-chat:Q4", "registry.ollama.ai/Me/Tiny-Chat:q4"],
}


@pytest.mark.parametrize(("path", "kind", "fields"), REQUESTS)
async def test_each_name_of_a_model_is_served(path: str, kind: str, fields: Any) -> None:
    async with cluster(FakeOllama(models=MODELS)) as gateway:
        for name in NAMES[kind]:
            answer = await gateway.post(path, {**fields, "model": name})
            assert answer.status == 200, (name, answer.body)
        assert {each.model for each in gateway.nodes[0].log} <= {
            "",
            "All-MiniLM:latest",
            "Me/Tiny-Chat:Q4",
        }


@pytest.mark.parametrize(("path", "kind", "fields"), REQUESTS)
async def test_an_invalid_name_is_a_400_and_an_unknown_one_a_404(
    path: str, kind: str, fields: Any
) -> None:
    async with cluster(FakeOllama(models=MODELS)) as gateway:
        before = gateway.nodes[0].requests
        for name in ("a b", "n\u00e4me", "x:y:z", "../x/y/z", "x" * 100_000):
            answer = await gateway.post(path, {**fields, "model": name})
            assert answer.status == 400, (name, answer.body)
            assert _words(answer.json) == "invalid model name"
        for name in ("no-such", "me/all-minilm", "all-minilm:q4", "hf.co/library/all-minilm"):
            answer = await gateway.post(path, {**fields, "model": name})
            assert answer.status == 404, (name, answer.body)
            assert "not found" in _words(answer.json)
        assert gateway.nodes[0].requests == before


def _words(body: Any) -> str:
    error = body["error"]
    words = error["message"] if isinstance(error, dict) else error
    assert isinstance(words, str)
    return words


async def test_models_by_their_path() -> None:
    async with cluster(FakeOllama(models=MODELS)) as gateway:
        for name, status in (
            ("all-minilm", 200),
            ("Me/Tiny-Chat:Q4", 200),
            ("no", 404),
            ("a%20b", 400),
        ):
            answer = await gateway.get(f"/v1/models/{name}")
            assert answer.status == status, answer.body


async def test_lists_have_the_spelling_of_the_node_and_each_model_once() -> None:
    other = FakeOllama(
        models=[FakeModel("all-minilm", dim=8), FakeModel("me/tiny-chat:q4", kind="chat")]
    )
    async with cluster(FakeOllama(models=MODELS), other) as gateway:
        names = [model["name"] for model in (await gateway.get("/api/tags")).json["models"]]
        assert names == ["All-MiniLM:latest", "Me/Tiny-Chat:Q4"]
        for state in gateway.pool.view.nodes.values():
            assert list(state.models or {}) == ["all-minilm:latest", "me/tiny-chat:q4"]
        assert len(gateway.pool.view.having("All-MINILM")) == 2


async def test_a_pool_knows_each_name() -> None:
    async with cluster(FakeOllama(models=MODELS)) as gateway:
        pool = gateway.pool
        for name in NAMES["embed"]:
            assert len(await pool.embed(name, "a")) == 8
            assert len(await pool.embed_batch(name, ["a", "b"])) == 2
        for name in NAMES["chat"]:
            assert str(await pool.chat(name, HELLO["messages"]))
        with pytest.raises(ModelNotFound, match="Me/Tiny-Chat:Q4"):
            await pool.embed("no-such", "a")
        for name in ("a b", "x:y:z", "x" * 1000):
            with pytest.raises(InvalidInput, match="invalid model name") as caught:
                await pool.embed(name, "a")
            assert len(str(caught.value)) < 300


async def test_a_digest_is_required_by_any_name() -> None:
    digest = FakeModel("All-MiniLM").digest
    for name in ("all-minilm", "library/ALL-minilm"):
        settings = {"require_digest": {name: digest}}
        async with cluster(FakeOllama(models=MODELS), settings=settings) as gateway:
            assert len(await gateway.pool.embed("all-MiniLM", "a")) == 8
        settings = {"require_digest": {name: "0" * 12}}
        async with cluster(FakeOllama(models=MODELS), settings=settings) as gateway:
            with pytest.raises(Exception, match="digest"):
                await gateway.pool.embed("all-MiniLM", "a")
