"""The OpenAPI document, a file, held against the router and the errors that all endpoints have."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import pytest
from aiohttp import web
from gateway_cluster import cluster

from aiosollol import __version__
from aiosollol.gateway.app import make_app
from aiosollol.gateway.options import GatewayOptions

pytestmark = pytest.mark.anyio

STORED = json.loads(
    files("aiosollol.gateway.endpoints").joinpath("openapi.json").read_text("utf-8")
)
ADMIN = {("POST", f"/api/{name}") for name in ("pull", "create", "copy")} | {
    ("DELETE", "/api/delete")
}


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The operations of a document, by method and path."""
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def routes(app: web.Application) -> set[tuple[str, str]]:
    """Method and path of every route; paths without the router's expressions."""
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    }


def refs(value: Any) -> set[str]:
    """The names of the schemas that `value` refers to."""
    return set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(value)))


@pytest.mark.parametrize("allow_admin", [False, True])
async def test_the_document_has_the_routes_and_no_other(allow_admin: bool) -> None:
    options = GatewayOptions(allow_admin=allow_admin)
    async with cluster(options=options) as gateway:
        served = (await gateway.get("/openapi.json")).json
        expected = routes(make_app(gateway.pool, options=options))
    assert operations(served).keys() == expected
    assert set(operations(STORED)) - expected == (set() if allow_admin else ADMIN)
    assert served["info"] == {**STORED["info"], "version": __version__}
    assert {**served, "paths": None, "info": None} == {**STORED, "paths": None, "info": None}


def test_the_document_is_sound() -> None:
    pytest.importorskip("openapi_spec_validator").validate(STORED)
    ids = [each["operationId"] for each in operations(STORED).values()]
    assert len(ids) == len(set(ids))
    assert refs(STORED) == set(STORED["components"]["schemas"])


@pytest.mark.parametrize(("method", "path"), sorted(operations(STORED)))
def test_an_operation_names_the_errors_of_all(method: str, path: str) -> None:
    """Those of the guard, and those of a body and of a node, in the form of its API."""
    operation = operations(STORED)[method, path]
    responses = operation["responses"]
    assert {"401", "403", "429", "500"} <= responses.keys()
    if "requestBody" in operation:
        assert {"400", "408", "413", "503"} <= responses.keys()
    if "X-Sollol-Node" in responses.get("200", {"headers": {}})["headers"]:
        assert {"400", "404", "502", "503", "504", "4XX", "5XX"} <= responses.keys()
    form = "OpenAIError" if path.startswith("/v1/") else "Error"
    form = "AnthropicError" if path.startswith("/v1/messages") else form
    for status, response in responses.items():
        if status in ("429", "503"):
            assert "Retry-After" in response["headers"]
        if status[0] in "45" and (status, path) != ("503", "/api/health"):
            assert refs(response) == {form}
    named = re.findall(r"\{(\w+)\}", path)
    given = operation.get("parameters", [])
    assert [each["name"] for each in given if each["in"] == "path"] == named
