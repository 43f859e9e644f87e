"""What a real Ollama answered, the gateway answers: status, type, shape and words."""

from __future__ import annotations

from typing import Any

import pytest
from capture_checks import CAPTURES, EMBEDDED, check, check_shape, load, send
from gateway_cluster import MODELS, Cluster, cluster

from aiosollol.embedded import EmbeddedNode
from aiosollol.gateway.options import GatewayOptions
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio

RUNNING = "30-ps-loaded"


@pytest.mark.parametrize("name", CAPTURES)
async def test_the_gateway_answers_as_ollama_did(name: str) -> None:
    nodes = [FakeOllama(models=MODELS) for _ in range(2)]
    async with cluster(*nodes, options=GatewayOptions(allow_admin=True)) as gateway:
        if name == RUNNING:
            await send(gateway.url, load("05-embed-string")["request"])
            await send(gateway.url, load("42-generate-empty-prompt-loads")["request"])
        if name == "56-delete":
            for node in nodes:
                node.add_model("copy-of-tiny")
        if name == RUNNING:
            await check_ps(gateway)
            return
        await check(gateway.url, name, dim=384)


@pytest.mark.parametrize("name", EMBEDDED)
async def test_over_embedded_nodes_it_answers_so_too(name: str) -> None:
    pytest.importorskip("wordllama")
    nodes: list[Any] = [EmbeddedNode(aliases=["all-minilm"]) for _ in range(2)]
    async with cluster(*nodes) as gateway:
        if name == RUNNING:
            await check_ps(gateway)
            return
        await check(gateway.url, name, dim=256)


async def check_ps(gateway: Cluster) -> None:
    """It says more than Ollama does: on which node."""
    answer = (await gateway.get("/api/ps")).json
    assert {model.pop("node") for model in answer["models"]} <= set(gateway.pool.view.nodes)
    check_shape(answer, load(RUNNING)["body"], 384)
