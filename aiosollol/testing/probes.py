"""The endpoints of a fake node that do not compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from aiosollol.core.node import full_name
from aiosollol.wire.ollama import server_requests, server_responses
from aiosollol.wire.ollama.server_responses import HttpResponse

if TYPE_CHECKING:
    from aiosollol.testing.node import FakeNode

_CREATED = 1_795_248_354  # seconds since 1970: creation of the models in the captures
_MODEL = "/v1/models/"


def probe(node: FakeNode, method: str, path: str, body: bytes) -> HttpResponse:
    """The answer to a request that does not compute. Raises Refusal."""
    if path.startswith(_MODEL) and path != _MODEL:
        methods: dict[str, _Probe] = {"GET": lambda node, _: _openai_model(node, path)}
    elif path in _PROBES:
        methods = _PROBES[path]
    else:
        return server_responses.not_found()
    return (
        methods[method](node, body) if method in methods else server_responses.method_not_allowed()
    )


def _root(node: FakeNode, body: bytes) -> HttpResponse:
    return server_responses.root()


def _version(node: FakeNode, body: bytes) -> HttpResponse:
    return server_responses.version(node.version)


def _tags(node: FakeNode, body: bytes) -> HttpResponse:
    return server_responses.tags(model.card() for model in node.models.values())


def _ps(node: FakeNode, body: bytes) -> HttpResponse:
    return server_responses.ps(
        (model.card(), model.size if model.gpu else 0, until)
        for name, until in node.memory
        if (model := node.models.get(name))
    )


def _show(node: FakeNode, body: bytes) -> HttpResponse:
    name = full_name(server_requests.read_show(body))
    if name not in node.models:
        raise server_responses.unknown_model(name)
    return server_responses.show(node.models[name].card())


def _copy(node: FakeNode, body: bytes) -> HttpResponse:
    source, destination = server_requests.read_copy(body)
    node.add_model(replace(node.find_model(source), name=destination))
    return HttpResponse(200, "", b"")


def _delete(node: FakeNode, body: bytes) -> HttpResponse:
    node.remove_model(node.find_model(server_requests.read_delete(body)).name)
    return HttpResponse(200, "", b"")


def _openai_models(node: FakeNode, body: bytes) -> HttpResponse:
    return server_responses.openai_models((name, _CREATED) for name in node.models)


def _openai_model(node: FakeNode, path: str) -> HttpResponse:
    name = path.removeprefix(_MODEL)
    if full_name(name) not in node.models:
        raise server_responses.unknown_model(full_name(name))
    return server_responses.openai_model(name, _CREATED)


_Probe = Callable[["FakeNode", bytes], HttpResponse]
_PROBES: dict[str, dict[str, _Probe]] = {
    "/": {"GET": _root, "HEAD": _root},
    "/api/version": {"GET": _version, "HEAD": _version},
    "/api/tags": {"GET": _tags, "HEAD": _tags},
    "/api/ps": {"GET": _ps},
    "/api/show": {"POST": _show},
    "/api/copy": {"POST": _copy},
    "/api/delete": {"DELETE": _delete},
    "/v1/models": {"GET": _openai_models},
}
