"""The npm package "ollama" against the gateway.

`nox -s clients` installs it and says where: AIOSOLLOL_NPM.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import unmet
from gateway_cluster import MODELS, cluster
from programs import run

from aiosollol.gateway.options import GatewayOptions
from aiosollol.testing import FakeOllama

numpy = pytest.importorskip("numpy")
pytestmark = pytest.mark.anyio

SCRIPT = Path(__file__).parent / "npm_client.mjs"


async def test_the_npm_package(require: Callable[..., None]) -> None:
    require("node")
    folder = os.environ.get("AIOSOLLOL_NPM", "")
    if not folder:
        unmet("AIOSOLLOL_NPM is not set: npm install --prefix FOLDER ollama, or nox -s clients")
    nodes = [FakeOllama(models=MODELS, seconds_per_chat_token=0.005) for _ in range(2)]
    async with cluster(*nodes, options=GatewayOptions(allow_admin=True)) as gateway:
        found = await said(folder, gateway.url)
        # The one that was aborted; nobody waits for it any more.
        async with asyncio.timeout(10):
            while sum(node.cancelled for node in nodes) != 1:
                await asyncio.sleep(0.005)
        assert sum(node.in_flight for node in nodes) == 0

    assert sorted(found["list"]) == ["all-minilm:latest", "slow-chat:latest", "tiny-chat:latest"]
    assert found["show"] == ["embedding"]
    assert found["version"].startswith("0.")
    vector = numpy.asarray(found["embed"][0], "f4").tobytes()
    assert vector == nodes[0].vector("all-minilm", "a text")
    assert (found["embedMany"], found["embeddings"]) == (50, 384)
    assert found["chat"] == "one two three"
    assert [part.strip() for part in found["chatStream"]] == ["one", "two", "three"]
    assert found["generate"] == "one two"
    assert "".join(found["generateStream"]) == "one two"
    assert {"all-minilm:latest", "tiny-chat:latest"} == set(found["ps"])
    for name in ("unknown", "unknownEmbed"):
        assert found[name]["status"] == 404
        assert "not found" in found[name]["message"]
    assert found["cannot"]["status"] == 400
    assert "does not support chat" in found["cannot"]["message"]
    assert found["abort"]["name"] == "AbortError"


async def said(folder: str, url: str) -> dict[str, Any]:
    """What the script found."""
    ran = await run("node", SCRIPT, url, env={"AIOSOLLOL_NPM": folder})
    assert ran.code == 0, ran.err
    answer: dict[str, Any] = json.loads(ran.out)
    return answer
