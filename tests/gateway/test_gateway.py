"""The gateway as one Ollama: what is passed on, what fails, what is refused, and in which words."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from gateway_cluster import MODELS, Cluster, cluster

from aiosollol.errors import InvalidInput
from aiosollol.gateway.options import GatewayOptions
from aiosollol.testing import FakeModel, FakeOllama, Fault
from aiosollol.wire.translation import Events

pytestmark = pytest.mark.anyio

HELLO = {"model": "tiny-chat", "messages": [{"role": "user", "content": "one two three four"}]}
PROMPT = {"model": "tiny-chat", "prompt": "one two three four"}


def nodes(count: int, **options: Any) -> list[FakeOllama]:
    return [FakeOllama(**{"models": MODELS, **options}) for _ in range(count)]


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def text_of(lines: list[Any]) -> str:
    return "".join(line["message"]["content"] for line in lines)


# ---- chat and generate


@pytest.mark.parametrize(("path", "body"), [("/api/chat", HELLO), ("/api/generate", PROMPT)])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_the_nodes_own(path: str, body: Any, stream: bool) -> None:
    async with cluster() as gateway:
        through = await gateway.post(path, {**body, "stream": stream})
        direct = await Cluster.post(
            Cluster(gateway.nodes[0].url, gateway.pool, [], gateway.session),
            path,
            {**body, "stream": stream},
        )
        assert through.status == direct.status == 200
        assert through.headers["Content-Type"] == direct.headers["Content-Type"]
        ours, theirs = through.lines, direct.lines
        assert len(ours) == len(theirs)
        for line, other in zip(ours, theirs, strict=True):
            assert list(line) == list(other)
        assert through.headers["X-Sollol-Node"] == gateway.pool.get_stats()["nodes"][0]
        assert through.headers["X-Sollol-Reason"] == "performance, 1 of 1"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.REFUSE, Fault.HTML, Fault.BUSY_503])
async def test_another_node_answers_if_one_dies_before_the_first_byte(
    fault: Fault, stream: bool
) -> None:
    sick, sound = nodes(2)
    async with cluster(sick, sound, settings={"routing_strategy": "round_robin"}) as gateway:
        sick.fault = fault
        for _ in range(4):
            answer = await gateway.post("/api/chat", {**HELLO, "stream": stream})
            assert answer.status == 200
            assert text_of(answer.lines) == "one two three four"
        assert sound.requests == 4 + 1  # one loads the model
        sick.fault = None


@pytest.mark.parametrize("fault", [Fault.STREAM_ERROR, Fault.STREAM_CUT, Fault.RESET])
async def test_an_error_in_mid_stream_is_a_line_of_its_own(fault: Fault) -> None:
    async with cluster(*nodes(1, seconds_per_chat_token=0.03)) as gateway:
        await gateway.pool.warm("tiny-chat")
        gateway.nodes[0].fault = fault
        answer = await gateway.post("/api/chat", HELLO)
        assert answer.status == 200
        *parts, last = answer.lines
        assert text_of(parts) == "one two"
        assert list(last) == ["error"]
        if fault is Fault.STREAM_ERROR:
            assert last["error"] == "llama runner process no longer running: 2 "
        stats = gateway.pool.get_stats()
        assert (stats["failed_requests"], stats["successful_requests"]) == (1, 0)


async def test_a_client_that_leaves_cancels_its_work_on_the_node() -> None:
    async with cluster(*nodes(1, seconds_per_chat_token=0.05)) as gateway:
        node = gateway.nodes[0]
        url = f"{gateway.url}/api/chat"
        body = {**HELLO, "messages": [{"role": "user", "content": "word " * 100}]}
        async with aiohttp.ClientSession() as leaver:
            response = await leaver.post(url, json=body)
            await response.content.readline()
            assert node.in_flight == 1
            response.close()
        await until(lambda: node.cancelled == 1 and node.in_flight == 0)
        async with aiohttp.ClientSession() as leaver:
            waiting = asyncio.create_task(leaver.post(url, json={**body, "stream": False}))
            await until(lambda: node.in_flight == 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: node.cancelled == 2 and node.in_flight == 0)
        await until(lambda: gateway.pool.get_stats()["cancelled_requests"] == 2)
        assert gateway.pool.get_stats()["failed_requests"] == 0


async def test_a_finished_stream_keeps_its_connection() -> None:
    async with cluster() as gateway:
        server = gateway.nodes[0]._http
        assert server is not None
        counts = []
        for _ in range(5):
            assert (await gateway.post("/api/chat", HELLO)).status == 200
            counts.append(len(server.connections))
        assert len(set(counts)) == 1


async def test_unloading_reaches_every_node() -> None:
    fakes = nodes(2)
    async with cluster(*fakes) as gateway:
        await asyncio.gather(*(gateway.pool.warm("tiny-chat") for _ in range(1)))
        assert len((await gateway.get("/api/ps")).json["models"]) == 2
        answer = await gateway.post("/api/generate", {"model": "tiny-chat", "keep_alive": 0})
        assert answer.json["done_reason"] == "unload"
        assert (await gateway.get("/api/ps")).json["models"] == []


# ---- what is refused


async def test_saturation_is_a_503_that_says_when_to_come_again() -> None:
    settings = {"max_waiting": 1, "wait_timeout": 0.2}
    fake = FakeOllama(models=MODELS, seconds_per_chat_token=0.05)
    async with cluster(fake, settings=settings) as gateway:
        asking = (gateway.post("/api/chat", {**HELLO, "stream": False}) for _ in range(64))
        found = await asyncio.gather(*asking)
        refused = [answer for answer in found if answer.status != 200]
        assert refused
        for answer in refused:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            assert "waiting" in answer.json["error"] or "place" in answer.json["error"]


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (Fault.ERROR_500, 500, "llama runner process no longer running: 2 "),
        (Fault.BUSY_503, 503, "server busy"),
        (Fault.HTML_502, 502, ""),
        (Fault.REFUSE, 502, ""),
    ],
)
async def test_what_all_nodes_fail_at_is_told_as_ollama_tells_it(
    fault: Fault, status: int, words: str
) -> None:
    settings = {"max_retries": 0}
    async with cluster(*nodes(1), settings=settings) as gateway:
        gateway.nodes[0].fault = fault
        answer = await gateway.post("/api/chat", {**HELLO, "stream": False})
        assert list(answer.json) == ["error"]
        assert words in answer.json["error"]
        assert answer.status == status or (fault is Fault.REFUSE and answer.status in (502, 503))
        if answer.status == 503:
            assert answer.headers["Retry-After"]
        gateway.nodes[0].fault = None


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        b'"text"',
        b'{"model": 1}',
        b'{"model": "tiny-chat", "options": []}',
        b'{"model": "all-minilm", "keep_alive": "soon"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "all-minilm", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
async def test_bad_bodies_are_400s_in_ollamas_form(path: str, body: bytes) -> None:
    async with cluster() as gateway:
        answer = await gateway.post(path, body)
        assert answer.status == 400, answer.body
        assert list(answer.json) == ["error"]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
)
@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"model": 1}', b"[" * 100_000])
async def test_bad_bodies_are_400s_in_openais_form(path: str, body: bytes) -> None:
    async with cluster() as gateway:
        answer = await gateway.post(path, body)
        assert answer.status == 400, answer.body
        assert answer.json["error"]["type"] == "invalid_request_error"


async def test_a_body_that_is_too_large_is_a_413() -> None:
    async with cluster(options=GatewayOptions(max_body_bytes=1000)) as gateway:
        answer = await gateway.post("/api/chat", b"x" * 5000)
        assert answer.status == 413
        assert "larger than 1000 bytes" in answer.json["error"]


async def test_paths_and_methods_that_there_are_not() -> None:
    async with cluster() as gateway:
        for path in ("/api/nothing", "/debug/pprof/", "/debug", "/api/pull", "/v2/models"):
            answer = await gateway.get(path)
            assert (answer.status, answer.body) == (404, b"404 page not found"), path
        for method, path in (("PUT", "/api/chat"), ("GET", "/api/embed"), ("DELETE", "/")):
            answer = await gateway.ask(method, path)
            assert (answer.status, answer.body) == (405, b"405 method not allowed")
        for path in ("/", "/api/version", "/api/tags"):
            answer = await gateway.ask("HEAD", path)
            assert (answer.status, answer.body) == (200, b"")


async def test_without_a_node_it_says_so() -> None:
    fake = FakeOllama(models=MODELS)
    async with cluster(fake) as gateway:
        fake.fault = Fault.REFUSE
        for _ in range(3):
            await gateway.pool.refresh()
        for path in ("/api/tags", "/api/ps", "/v1/models"):
            answer = await gateway.get(path)
            assert answer.status in (502, 503)
            assert "error" in answer.json
        health = await gateway.get("/api/health")
        assert (health.status, health.json["status"]) == (503, "unhealthy")
        assert (await gateway.get("/")).status == 200
        fake.fault = None


# ---- what is told of nodes and requests


async def test_tags_are_the_union_over_the_nodes() -> None:
    one = FakeOllama(models=[FakeModel("a"), FakeModel("b")], version="0.12.9")
    two = FakeOllama(models=[FakeModel("b"), FakeModel("c")], version="0.9.0")
    async with cluster(one, two) as gateway:
        names = [model["name"] for model in (await gateway.get("/api/tags")).json["models"]]
        assert names == ["a:latest", "b:latest", "c:latest"]
        listed = [model["id"] for model in (await gateway.get("/v1/models")).json["data"]]
        assert listed == names
        assert (await gateway.get("/api/version")).json == {"version": "0.9.0"}
        assert (await gateway.post("/api/show", {"model": "c"})).status == 200
        two.fault = Fault.REFUSE  # one that is gone holds up nobody
        names = [model["name"] for model in (await gateway.get("/api/tags")).json["models"]]
        assert names == ["a:latest", "b:latest"]
        two.fault = None


async def test_a_node_that_hangs_holds_up_nobody() -> None:
    one = FakeOllama(models=[FakeModel("a")], faults_probes=True)
    two = FakeOllama(models=[FakeModel("b")])
    async with cluster(one, two) as gateway:
        one.fault = Fault.HANG
        async with asyncio.timeout(3):
            names = [model["name"] for model in (await gateway.get("/api/tags")).json["models"]]
        assert names == ["b:latest"]
        one.fault = None


async def test_a_pool_that_is_closed_ends_its_streams_with_an_error() -> None:
    async with cluster(*nodes(1, seconds_per_chat_token=0.05)) as gateway:
        body = {**HELLO, "messages": [{"role": "user", "content": "word " * 100}]}
        asking = asyncio.create_task(gateway.post("/api/chat", body))
        await until(lambda: gateway.nodes[0].in_flight == 1)
        await asyncio.sleep(0.2)
        await gateway.pool.aclose(wait=0)
        *_, last = (await asking).lines
        assert "closed" in last["error"]
        answer = await gateway.post("/api/chat", HELLO)
        assert (answer.status, list(answer.json)) == (503, ["error"])


async def test_the_id_of_a_request_is_the_clients_or_a_new_one() -> None:
    async with cluster() as gateway:
        answer = await gateway.post("/api/chat", HELLO, X_Request_ID="mine-1")
        assert answer.headers["X-Request-ID"] == "mine-1"
        first = await gateway.get("/api/version")
        second = await gateway.get("/api/nothing")
        assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"] != ""
        odd = await gateway.get("/", X_Request_ID="x" * 300)
        assert odd.headers["X-Request-ID"] != "x" * 300


async def test_every_request_is_told_of_once() -> None:
    async with cluster() as gateway:
        await gateway.post("/api/chat", HELLO)
        await gateway.get("/v1/models/tiny-chat")
        await gateway.get("/somewhere")
        await gateway.post("/api/chat", {"model": "no-such"})
        seen = [(each.method, each.endpoint, each.status) for each in gateway.served]
        assert seen == [
            ("POST", "/api/chat", 200),
            ("GET", "/v1/models/{name}", 200),
            ("GET", "", 404),
            ("POST", "/api/chat", 404),
        ]
        assert gateway.served[0].node == gateway.pool.get_stats()["nodes"][0]
        assert all(each.seconds > 0 for each in gateway.served)


async def test_health_and_stats_are_the_originals() -> None:
    async with cluster(*nodes(2)) as gateway:
        await gateway.post("/api/embed", {"model": "all-minilm", "input": "x"})
        health = (await gateway.get("/api/health")).json
        assert health["status"] == "healthy"
        stats = (await gateway.get("/api/stats")).json
        assert len(stats["hosts"]) == 2
        assert {"host", "available", "latency_ms", "success_rate", "last_updated"} <= set(
            stats["hosts"][0]
        )
        assert stats["total_requests"] == 1
        assert stats["vectors"] == 1


@pytest.mark.parametrize(
    "options", [{"max_body_bytes": 0}, {"gather_seconds": -1.0}, {"gather_above": True}]
)
def test_impossible_options_are_refused(options: Any) -> None:
    with pytest.raises(InvalidInput):
        GatewayOptions(**options)


async def test_a_bug_is_a_500_that_names_the_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as gateway:
        monkeypatch.setattr(gateway.pool.gateway_access, "forward", lambda *_, **__: 1 / 0)
        answer = await gateway.post("/api/chat", {**HELLO, "stream": False}, X_Request_ID="r1")
        assert answer.status == 500
        assert "r1" in answer.json["error"]
        assert "ZeroDivisionError" in caplog.text
        assert json.loads(answer.body)


async def test_a_bug_in_mid_stream_does_not_look_like_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cluster(*nodes(1, seconds_per_chat_token=0.01)) as gateway:
        await gateway.pool.warm("tiny-chat")
        whole, fed = Events.feed, []

        def feed(self: Events, piece: bytes) -> bytes:
            fed.append(piece)
            return whole(self, piece) if len(fed) < 2 else 1 // 0  # type: ignore[return-value]

        monkeypatch.setattr(Events, "feed", feed)
        with pytest.raises(aiohttp.ClientError):
            await gateway.post("/v1/chat/completions", {**HELLO, "stream": True})
        await until(lambda: gateway.nodes[0].in_flight == 0)
