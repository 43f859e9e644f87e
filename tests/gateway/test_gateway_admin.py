"""Models pulled, copied and deleted through the gateway, and the page that tells of it all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from gateway_cluster import MODELS, Cluster, cluster, served

from aiosollol import OllamaPool
from aiosollol.gateway.app import make_app
from aiosollol.gateway.endpoints.admin import Progress
from aiosollol.gateway.options import GatewayOptions
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio

ADMIN = GatewayOptions(allow_admin=True)
DIGEST = "sha256:abc"


class Puller:
    """A node that pulls. fails: with what; hangs: until its client leaves."""

    def __init__(self, *, fails: str = "", hangs: bool = False) -> None:
        self.fails = fails
        self.hangs = hangs
        self.models: list[str] = []
        self.left = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/tags", self._tags)
        app.router.add_get("/api/ps", self._none)
        app.router.add_get("/api/version", self._version)
        app.router.add_post("/api/pull", self._pull)
        return app

    async def _tags(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": name} for name in self.models]})

    async def _none(self, _: web.Request) -> web.Response:
        return web.json_response({"models": []})

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.33.0"})

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        model = (await request.json())["model"]
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            await self._tell(response, {"status": "pulling manifest"})
            await self._tell(response, {"status": "pulling abc", "digest": DIGEST, "total": 100})
            await self._tell(
                response,
                {"status": "pulling abc", "digest": DIGEST, "total": 100, "completed": 50},
            )
            if self.hangs:
                await asyncio.sleep(60)
            if self.fails:
                await self._tell(response, {"error": self.fails})
                return response
            await self._tell(
                response,
                {"status": "pulling abc", "digest": DIGEST, "total": 100, "completed": 100},
            )
            self.models.append(f"{model}:latest")
            await self._tell(response, {"status": "success"})
        except asyncio.CancelledError:
            self.left += 1
            raise
        return response

    async def _tell(self, response: web.StreamResponse, line: Any) -> None:
        await response.write(json.dumps(line).encode() + b"\n")


@asynccontextmanager
async def pulling(*pullers: Puller) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(served(each.app())) for each in pullers]
        specs = [{"url": url, "name": f"node{number}"} for number, url in enumerate(urls)]
        pool = await stack.enter_async_context(OllamaPool(specs))
        await pool.refresh()
        url = await stack.enter_async_context(served(make_app(pool, options=ADMIN)))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Cluster(url, pool, [], session)


async def test_a_model_is_pulled_on_all_nodes() -> None:
    pullers = [Puller(), Puller(), Puller()]
    async with pulling(*pullers) as gateway:
        answer = await gateway.post("/api/pull", {"model": "m"})
        assert answer.headers["X-Sollol-Node"] == "node0,node1,node2"
        lines = answer.lines
        assert lines[-1] == {"status": "success"}
        assert [line["status"] for line in lines].count("pulling manifest") == 1
        progress = [line for line in lines if line.get("digest") == DIGEST]
        assert {line["total"] for line in progress} == {300}
        completed = [line.get("completed", 0) for line in progress]
        assert completed == sorted(completed)
        assert completed[-1] == 300
        assert len(gateway.pool.view.having("m")) == 3  # it is known at once


async def test_a_model_is_pulled_on_the_nodes_that_are_named() -> None:
    pullers = [Puller(), Puller(), Puller()]
    async with pulling(*pullers) as gateway:
        for query, have in (("node1", [0, 1, 0]), ("node0,node2", [1, 1, 1]), ("all", [2, 2, 2])):
            body = {"model": "m", "stream": False}
            answer = await gateway.post(f"/api/pull?node={query}", body)
            assert answer.json == {"status": "success"}
            assert [len(each.models) for each in pullers] == have
        answer = await gateway.post("/api/pull?node=nobody", {"model": "m"})
        assert answer.status == 400
        assert "node0, node1, node2" in answer.json["error"]
        for body in ({}, [], {"model": 1}):
            assert (await gateway.post("/api/pull", body)).status == 400


async def test_what_fails_on_one_node_is_told_at_the_end() -> None:
    pullers = [Puller(), Puller(fails="no space left on device")]
    async with pulling(*pullers) as gateway:
        lines = (await gateway.post("/api/pull", {"model": "m"})).lines
        assert lines[-1] == {"error": "done on 1 of 2 nodes; node1: no space left on device"}
        answer = await gateway.post("/api/pull", {"model": "m", "stream": False})
        assert answer.status == 500
        assert "no space left" in answer.json["error"]


async def test_a_client_that_leaves_ends_its_pull() -> None:
    pullers = [Puller(hangs=True), Puller(hangs=True)]
    async with pulling(*pullers) as gateway:
        async with aiohttp.ClientSession() as leaver:
            response = await leaver.post(f"{gateway.url}/api/pull", json={"model": "m"})
            await response.content.readline()
            response.close()
        async with asyncio.timeout(5):
            while sum(each.left for each in pullers) < 2:
                await asyncio.sleep(0.01)


def test_progress_of_a_node_that_ends_early() -> None:
    progress = Progress(["a"])
    assert progress.feed("a", {"status": "verifying"}) == {"status": "verifying"}
    assert progress.feed("a", {"status": "verifying"}) is None
    assert progress.end() == {"error": "its answer ended before it was done"}


async def test_models_are_copied_and_deleted_on_all_nodes_that_have_them() -> None:
    one, two = FakeOllama(models=MODELS), FakeOllama(models=["other"])
    async with cluster(one, two, options=ADMIN) as gateway:
        answer = await gateway.post("/api/copy", {"source": "tiny-chat", "destination": "second"})
        assert (answer.status, answer.body) == (200, b"")
        assert "second:latest" in one.models
        assert "second:latest" not in two.models
        assert len(gateway.pool.view.having("second")) == 1
        answer = await gateway.ask("DELETE", "/api/delete", {"model": "second"})
        assert answer.status == 200
        assert "second:latest" not in one.models
        answer = await gateway.ask("DELETE", "/api/delete", {"model": "second"})
        assert answer.status == 404
        assert answer.json == {"error": "model 'second' not found"}


async def test_without_leave_nobody_changes_models() -> None:
    async with cluster() as gateway:
        for method, path in (
            ("POST", "/api/pull"),
            ("POST", "/api/create"),
            ("POST", "/api/copy"),
            ("DELETE", "/api/delete"),
        ):
            assert (await gateway.ask(method, path, {"model": "tiny-chat"})).status == 404
        assert "tiny-chat:latest" in gateway.nodes[0].models


# ---- the page


async def test_the_document_has_every_endpoint() -> None:
    async with cluster(options=ADMIN) as gateway:
        document = (await gateway.get("/openapi.json")).json
        assert document["openapi"] == "3.1.0"
        paths = document["paths"]
        assert {"/api/chat", "/v1/models/{name}", "/api/embed/batch/{id}", "/api/pull"} <= set(
            paths
        )
        ids = [each["operationId"] for path in paths.values() for each in path.values()]
        assert len(ids) == len(set(ids))
        validator = pytest.importorskip("openapi_spec_validator")
        validator.validate(document)
    async with cluster() as gateway:
        assert "/api/pull" not in (await gateway.get("/openapi.json")).json["paths"]


async def test_the_page_needs_no_internet() -> None:
    async with cluster() as gateway:
        page = await gateway.get("/docs")
        assert page.status == 200
        assert b"http://" not in page.body
        assert b"https://" not in page.body
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        assert (await gateway.get("/docs/../app.py")).status == 404
        assert (await gateway.get("/docs/swagger-ui.js.map")).status == 404
        if b"swagger" in page.body:
            for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js"):
                assert (await gateway.get(f"/docs/{name}")).status == 200


async def test_the_page_without_swagger_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosollol.gateway.endpoints.openapi.find_spec", lambda name: None)
    async with cluster() as gateway:
        page = await gateway.get("/docs")
        assert b"/api/embed/batch/{id}" in page.body
        assert (await gateway.get("/docs/swagger-ui.css")).status == 404
