"""A slash at the end of a path: the gateway redirects as Ollama does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gateway_cluster import MODELS, Cluster, cluster
from keyed_gateway import gateways

from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio

HELLO = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}], "stream": False}
PROMPT = {"model": "tiny-chat", "prompt": "hi", "stream": False}
TEXTS = {"model": "all-minilm", "input": ["a", "b"]}
PATHS: list[tuple[str, str, Any]] = [
    ("POST", "/api/chat", HELLO),
    ("POST", "/api/generate", PROMPT),
    ("POST", "/api/embed", TEXTS),
    ("POST", "/v1/chat/completions", HELLO),
    ("POST", "/v1/embeddings", TEXTS),
    ("GET", "/api/tags", None),
    ("GET", "/api/version", None),
    ("GET", "/v1/models", None),
    ("HEAD", "/api/version", None),
]


async def unfollowed(
    gateway: Cluster, method: str, path: str, body: Any = None
) -> tuple[int, str | None]:
    async with gateway.session.request(
        method, gateway.url + path, json=body, allow_redirects=False
    ) as answer:
        return answer.status, answer.headers.get("Location")


@pytest.mark.parametrize(("method", "path", "body"), PATHS)
async def test_a_path_with_a_slash_leads_to_the_one_without(
    method: str, path: str, body: Any
) -> None:
    async with cluster(FakeOllama(models=MODELS)) as gateway:
        status = 301 if method == "GET" else 307
        assert await unfollowed(gateway, method, f"{path}/", body) == (status, path)
        assert await unfollowed(gateway, method, f"{path}/?a=%26", body) == (
            status,
            f"{path}?a=%26",
        )
        async with gateway.session.request(method, f"{gateway.url}{path}/", json=body) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/nothing/"),
        ("GET", "/debug/pprof/"),
        ("GET", "/api/tags//"),
        ("GET", "//evil.example/"),
        ("GET", "//evil.example/api/tags/"),
        ("POST", "/api/tags/"),
        ("GET", "/api/chat/"),
    ],
)
async def test_there_is_no_other_redirect(method: str, path: str) -> None:
    async with cluster(FakeOllama(models=MODELS)) as gateway:
        assert await unfollowed(gateway, method, path) == (404, None)


async def test_a_redirect_needs_a_key_too(tmp_path: Path) -> None:
    async with gateways(tmp_path) as both:
        for path in ("/api/chat/", "/api/nothing/"):
            answer = await both.ask("", "POST", path, HELLO)
            assert answer.status == 401
        assert (await both.ask("ann", "GET", "/api/nothing/")).status == 404
        # The guard reads the body of a key that has models.
        headers = {"Authorization": f"Bearer {both.tokens['dan']}"}
        async with both.keyed.session.post(
            f"{both.keyed.url}/api/chat/", json=HELLO, headers=headers, allow_redirects=False
        ) as refused:
            assert refused.status == 307
