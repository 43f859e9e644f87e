"""What a real Ollama answered, the gateway answers: status, type, shape and words."""

from __future__ import annotations

import pytest
from gateway_cluster import MODELS, Cluster, cluster
from test_captures import CAPTURES, check, check_shape, load, send

from aiosollol.gateway.options import GatewayOptions
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", CAPTURES)
async def test_the_gateway_answers_as_ollama_did(name: str) -> None:
    nodes = [FakeOllama(models=MODELS) for _ in range(2)]
    async with cluster(*nodes, options=GatewayOptions(allow_admin=True)) as gateway:
        if name == "30-ps-loaded":
            await send(gateway.url, load("05-embed-string")["request"])
            await send(gateway.url, load("42-generate-empty-prompt-loads")["request"])
        if name == "56-delete":
            for node in nodes:
                node.add_model("copy-of-tiny")
        if name == "30-ps-loaded":
            await check_ps(gateway)
            return
        await check(gateway.url, name, dim=384)


async def check_ps(gateway: Cluster) -> None:
    """It says more than Ollama does: on which node."""
    answer = (await gateway.get("/api/ps")).json
    assert {model.pop("node") for model in answer["models"]} <= set(gateway.pool.view.nodes)
    check_shape(answer, load("30-ps-loaded")["body"], 384)
