"""The embedded node over HTTP: vectors on the wire, refusals, and a loop that never blocks."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from embedded_parts import ODD, PASSAGES

from aiosollol.embedded import Backend, Computed, EmbeddedNode, make_app, serve
from aiosollol.embedded.model import StaticModel
from aiosollol.errors import InvalidInput, MissingExtra, NodeUnreachable
from aiosollol.wire.ollama.server_responses import ModelCard

numpy = pytest.importorskip("numpy")
pytest.importorskip("wordllama")
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def original() -> Any:
    """WordLlama's own model, loaded the way its users would with no network."""
    import wordllama

    return wordllama.WordLlama.load(
        "l2_supercat",
        dim=256,
        cache_dir=Path(wordllama.__file__).parent,
        disable_download=True,
    )


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


async def post(session: aiohttp.ClientSession, url: str, **body: Any) -> Any:
    async with session.post(url, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


@pytest.mark.parametrize("process", [False, True])
async def test_vectors_survive_the_wire(
    process: bool, session: aiohttp.ClientSession, original: Any
) -> None:
    texts = [*PASSAGES[:100], *ODD]
    expected = original.embed(texts, norm=True, batch_size=1)
    async with EmbeddedNode(process=process, aliases=["other"]) as node:
        answer = await post(session, f"{node.url}/api/embed", model="wordllama", input=texts)
        assert numpy.asarray(answer["embeddings"], numpy.float32).tobytes() == expected.tobytes()
        for encoding in ("float", "base64"):
            answer = await post(
                session,
                f"{node.url}/v1/embeddings",
                model="other",
                input=texts,
                encoding_format=encoding,
            )
            assert floats_of(answer) == expected.tobytes()
        answer = await post(session, f"{node.url}/api/embeddings", model="other", prompt=texts[0])
        assert numpy.asarray(answer["embedding"], numpy.float32).tobytes() == expected[0].tobytes()


def floats_of(answer: Any) -> bytes:
    import base64

    items = [item["embedding"] for item in answer["data"]]
    if isinstance(items[0], str):
        return b"".join(base64.b64decode(item, validate=True) for item in items)
    floats: bytes = numpy.asarray(items, numpy.float32).tobytes()
    return floats


async def test_lone_surrogates_are_replaced_as_go_does(session: aiohttp.ClientSession) -> None:
    async with EmbeddedNode() as node:
        url = f"{node.url}/api/embed"
        body = rb'{"model":"wordllama","input":["\ud800","\ufffd"]}'
        async with session.post(url, data=body) as response:
            first, second = (await response.json())["embeddings"]
    assert first == second


async def test_before_and_after_it_has_no_url() -> None:
    node = EmbeddedNode(name="n")
    with pytest.raises(InvalidInput, match="'n' has not been started"):
        _ = node.url
    async with node:
        assert node.url in repr(node)
    with pytest.raises(InvalidInput):
        _ = node.url
    assert repr(node) == "<EmbeddedNode 'n' not started>"


@pytest.mark.parametrize("options", [{"delay": -1.0}, {"delay": float("nan")}, {"port": 65536}])
def test_impossible_options_are_refused(options: Any) -> None:
    with pytest.raises(InvalidInput):
        EmbeddedNode(**options)


async def test_a_taken_port_is_an_error_of_ours() -> None:
    async with EmbeddedNode() as node:
        port = int(node.url.rpartition(":")[2])
        with pytest.raises(InvalidInput, match=f"cannot listen on 127.0.0.1 port {port}"):
            async with EmbeddedNode(port=port):
                pass
        with pytest.raises(InvalidInput, match=f"port {port}"):
            await serve("127.0.0.1", port)
        with pytest.raises(NodeUnreachable, match=f"ended with code 1.*port {port}"):
            async with EmbeddedNode(port=port, process=True):
                pass


@pytest.mark.parametrize("process", [False, True])
async def test_without_the_extra_it_says_so(process: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[embedded\]"):
        async with EmbeddedNode(process=process):
            pass
    with pytest.raises(MissingExtra):
        StaticModel().load()


class SlowBackend:
    """A backend that computes nothing and waits for `go` before each slice."""

    names = ("slow:latest",)
    dim = 2

    def __init__(self) -> None:
        self.computed: list[str] = []
        self.began = asyncio.Event()
        self.go = threading.Event()
        self._loop = asyncio.get_running_loop()

    def load(self) -> None:
        pass

    def card(self) -> ModelCard:
        return ModelCard("slow:latest", "", 0, 2, 512, "2026-11-21T08:05:54Z")

    def embed(self, texts: Sequence[str], dimensions: int = 0) -> Computed:
        self._loop.call_soon_threadsafe(self.began.set)
        assert self.go.wait(60)
        self.computed += texts
        return Computed(bytes(8 * len(texts)), 2, len(texts))


@asynccontextmanager
async def serving(backend: Backend, **options: Any) -> AsyncIterator[str]:
    runner = web.AppRunner(
        make_app(backend, **options), handler_cancellation=True, shutdown_timeout=0.1
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_it_answers_while_it_computes(session: aiohttp.ClientSession) -> None:
    backend = SlowBackend()
    async with serving(backend) as url:
        body = {"model": "slow", "input": ["x"] * 1000}
        computing = asyncio.create_task(post(session, f"{url}/api/embed", **body))
        await backend.began.wait()
        async with session.get(f"{url}/api/version") as response:
            assert response.status == 200
        assert not computing.done()
        backend.go.set()
        assert len((await computing)["embeddings"]) == 1000
    assert len(backend.computed) == 1000


async def test_what_a_client_that_left_asked_for_is_dropped(
    session: aiohttp.ClientSession,
) -> None:
    backend = SlowBackend()
    async with serving(backend) as url:
        async with aiohttp.ClientSession() as leaving:
            body = {"model": "slow", "input": ["left"] * 1000}
            computing = asyncio.create_task(post(leaving, f"{url}/api/embed", **body))
            await backend.began.wait()
            computing.cancel()
            await asyncio.wait([computing])
        for _ in range(2):  # by the time these are answered, the server has seen it leave
            async with session.get(f"{url}/api/version") as response:
                assert response.status == 200
        backend.go.set()
        await post(session, f"{url}/api/embed", model="slow", input=["stayed"])
    assert backend.computed.count("left") <= 32
    assert backend.computed[-1] == "stayed"


async def test_requests_take_turns(session: aiohttp.ClientSession) -> None:
    """A short request does not wait for all of a long one."""
    backend = SlowBackend()
    async with serving(backend) as url:
        body = {"model": "slow", "input": ["long"] * 1000}
        computing = asyncio.create_task(post(session, f"{url}/api/embed", **body))
        await backend.began.wait()
        short = asyncio.create_task(
            post(session, f"{url}/api/embed", model="slow", input=["short"])
        )
        for _ in range(2):  # by the time these are answered, the short one is in the queue
            async with session.get(f"{url}/api/version") as response:
                assert response.status == 200
        backend.go.set()
        await asyncio.gather(computing, short)
    assert backend.computed.index("short") < 100


async def test_a_delay_makes_it_slower_text_by_text(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []
    monkeypatch.setattr("aiosollol.embedded.app.time.sleep", slept.append)
    backend = SlowBackend()
    backend.go.set()
    async with serving(backend, delay=0.25) as url:
        await post(session, f"{url}/api/embed", model="slow", input=["a", "b", "c"])
    assert slept == [0.25, 0.25, 0.25]
