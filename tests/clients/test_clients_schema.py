"""schemathesis asks the gateway what its document allows, and what not: every answer fits it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import unmet
from gateway_cluster import MODELS, served
from programs import Ran, run

from aiosollol import OllamaPool
from aiosollol.autobatch import AutoBatch
from aiosollol.gateway.app import make_app
from aiosollol.gateway.options import GatewayOptions
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio

EXAMPLES = os.environ.get("AIOSOLLOL_TEST_EXAMPLES", "25")
"""For each operation. Thousands are for whoever has changed the document, and has time."""

UNUSED_CHECKS = (
    "not_a_server_error",  # schema_hooks has its own, and says why
    "positive_data_acceptance",  # the same
    "negative_data_rejection",  # null is absent for Go, and what a node does not look at passes
)


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[str, list[str]]]:
    """Where a gateway with all it can do answers, and jobs that it has: done, failed, waiting."""
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(FakeOllama(models=MODELS, poison=["poison"]))
            for _ in range(2)
        ]
        specs = [
            {"url": node.url, "name": f"node-{n}", "machine": f"machine {n}"}
            for n, node in enumerate(nodes)
        ]
        pool = await stack.enter_async_context(OllamaPool(specs))
        await pool.refresh()
        queue = await stack.enter_async_context(AutoBatch(pool, folder / "queue.db", interval=0.05))
        jobs = [await queue.submit(docs, "all-minilm") for docs in (["a", "b"], ["poison"])]
        for job in jobs:
            await queue.wait(job)
        jobs.append(await queue.submit(["c"], "no-such"))

        @web.middleware
        async def restoring(request: web.Request, handler: Any) -> web.StreamResponse:
            """What was deleted is there again for the next request."""
            try:
                answer: web.StreamResponse = await handler(request)
            finally:
                if request.path == "/api/delete":
                    for node in nodes:
                        for model in MODELS:
                            node.add_model(model)
                    await pool.refresh()
            return answer

        app = make_app(
            pool,
            options=GatewayOptions(allow_admin=True),
            autobatch=queue,
            middlewares=[restoring],
        )
        yield await stack.enter_async_context(served(app)), jobs


async def test_every_answer_fits_the_document(tmp_path: Path) -> None:
    if find_spec("schemathesis") is None:
        unmet("not installed: schemathesis")
    async with gateway(tmp_path) as (url, jobs):
        ran = await schemathesis(url, jobs, tmp_path)
    told = ran.out.decode("utf-8", "replace")
    assert ran.code == 0, told + ran.err
    assert "Tested: 33" in told


async def schemathesis(url: str, jobs: list[str], folder: Path) -> Ran:
    """What it says of the gateway."""
    return await run(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES),
        *("--generation-deterministic", "--exclude-checks", ",".join(UNUSED_CHECKS)),
        *("--continue-on-failure", "--no-color", "--warnings", "off"),
        env={
            "PYTHONPATH": str(Path(__file__).parent),
            "SCHEMATHESIS_HOOKS": "schema_hooks",
            "AIOSOLLOL_TEST_JOBS": ",".join(jobs),
        },
        cwd=folder,  # what it leaves behind, it leaves there
        seconds=3600,  # it has a bound of its own: so many examples
    )
