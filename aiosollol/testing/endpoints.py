"""The endpoints of a fake node, except chat and generate: embedding, and those that list."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from aiosollol.core.model_names import full_name, shortest_name
from aiosollol.testing.faults import LOST_RUNNER, Fault
from aiosollol.testing.models import FakeModel, fake_tokens, fake_vector
from aiosollol.testing.requests import Pace, Reply, SimulatedRequest, nanoseconds, whole
from aiosollol.wire.ollama import server_requests, server_responses
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse

if TYPE_CHECKING:
    from aiosollol.testing.node import FakeNode

_NAN = b"\x00\x00\xc0\x7f" if memoryview(b"\x01\x00").cast("H")[0] == 1 else b"\x7f\xc0\x00\x00"


@dataclass(slots=True)
class _Embedded:
    floats: bytearray
    dim: int
    tokens: int = 0
    seconds: float = 0.0
    load_seconds: float = 0.0


async def api_embed(
    node: FakeNode, work: SimulatedRequest, body: bytes, fault: Fault | None
) -> Reply:
    request = server_requests.read_embed(body)
    done = await _embed(node, work, request, fault)
    vectors = server_responses.json_vectors(done.floats, done.dim)
    return whole(
        server_responses.embed(
            request.model,
            vectors,
            total_duration=nanoseconds(done.seconds) if request.texts else 0,
            load_duration=nanoseconds(done.load_seconds) if request.texts else 0,
            tokens=done.tokens,
        )
    )


async def api_embeddings(
    node: FakeNode, work: SimulatedRequest, body: bytes, fault: Fault | None
) -> Reply:
    done = await _embed(node, work, server_requests.read_embeddings(body), fault)
    vectors = server_responses.json_vectors(done.floats, done.dim)
    return whole(server_responses.embeddings(vectors[0] if vectors else None))


async def openai_embeddings(
    node: FakeNode, work: SimulatedRequest, body: bytes, fault: Fault | None
) -> Reply:
    request = server_requests.read_openai_embeddings(body, knows_base64=_knows_base64(node.version))
    done = await _embed(node, work, request, fault)
    is_base64 = request.encoding == "base64"
    write = server_responses.base64_vectors if is_base64 else server_responses.json_vectors
    return whole(
        server_responses.openai_embeddings(
            request.model, write(done.floats, done.dim), tokens=done.tokens
        )
    )


async def _embed(
    node: FakeNode, work: SimulatedRequest, request: server_requests.EmbedAsked, fault: Fault | None
) -> _Embedded:
    model = node.models.get(full_name(request.model))
    if model is None:
        raise server_responses.unknown_model_try_pulling(request.model)
    if model.kind != "embedding":
        raise Refusal(501, server_responses.NO_EMBEDDINGS)
    work.record.model = model.name
    work.record.items = len(request.texts)
    done = _Embedded(bytearray(), model.cut(request.dimensions))
    done.load_seconds = await node.load(model, request)
    if not request.texts:
        node.after(model, request)
        return done
    if fault is Fault.WRONG_DIM:
        done.dim += 1
    await work.acquire()
    pace = Pace()
    await pace.pay(node.overhead)
    for number, text in enumerate(request.texts):
        tokens = min(fake_tokens(text), model.context_length)
        await pace.pay(node.seconds_per_item + node.seconds_per_token * tokens)
        if number % 64 == 63:
            await checkpoint()  # let others run during a long list without costs
        done.floats += fake_vector(model.weights, text, done.dim)
        done.tokens += tokens
        node.items += 1
        if node.count_texts:
            node.embedded[text] += 1
    work.release()
    node.after(model, request)
    # Only now, like Ollama: one bad text fails the whole list after the others were computed.
    _refuse_bad(node, model, request)
    if fault is Fault.NAN:
        if request.encoding != "base64":
            raise Refusal(500, server_responses.NAN)
        done.floats[:4] = _NAN
    if fault is Fault.TOO_FEW:
        del done.floats[-4 * done.dim :]
    done.seconds = anyio.current_time() - work.record.at
    return done


def _refuse_bad(node: FakeNode, model: FakeModel, request: server_requests.EmbedAsked) -> None:
    for text in request.texts:
        is_long = not request.truncate and fake_tokens(text) > model.context_length
        if is_long or any(poison in text for poison in node.poison):
            raise Refusal(400, server_responses.TOO_LONG)
        if any(deadly in text for deadly in node.crash_on):
            node.memory.unload(model.name)
            raise Refusal(500, LOST_RUNNER)


def _knows_base64(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return numbers is None or tuple(map(int, numbers.groups())) >= (0, 12, 7)


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
        if (model := node.models.get(full_name(name)))
    )


def _show(node: FakeNode, body: bytes) -> HttpResponse:
    name = server_requests.read_show(body)
    model = node.models.get(full_name(name))
    if model is None:
        raise server_responses.unknown_model(shortest_name(name))
    return server_responses.show(model.card())


def _copy(node: FakeNode, body: bytes) -> HttpResponse:
    source, destination = server_requests.read_copy(body)
    node.add_model(replace(node.find_model(source), name=destination))
    return HttpResponse(200, "", b"")


def _delete(node: FakeNode, body: bytes) -> HttpResponse:
    node.remove_model(node.find_model(server_requests.read_delete(body)).name)
    return HttpResponse(200, "", b"")


def _openai_models(node: FakeNode, body: bytes) -> HttpResponse:
    return server_responses.openai_models((model.name, _CREATED) for model in node.models.values())


def _openai_model(node: FakeNode, path: str) -> HttpResponse:
    name = path.removeprefix(_MODEL)
    server_requests.check_model_name(name)
    if full_name(name) not in node.models:
        raise server_responses.unknown_model(shortest_name(name))
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
