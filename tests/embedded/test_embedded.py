"""The embedded node: WordLlama's own vectors, no network, a loop that never stands still."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aiosollol.embedded import Backend, Computed, EmbeddedNode, make_app, serve
from aiosollol.embedded.model import StaticModel
from aiosollol.errors import InvalidInput, MissingExtra, NodeTimeout, NodeUnreachable
from aiosollol.net.subprocess import ServerProcess
from aiosollol.wire.ollama.server_responses import ModelCard

numpy = pytest.importorskip("numpy")
pytest.importorskip("wordllama")
pytestmark = pytest.mark.anyio

PASSAGES = [part for topic in topics.values() for part in topic.split("\n\n") if part.strip()][:500]
ODD = [
    " ",
    "\n",
    "a",
    "\x00",
    "é",
    "日本語",
    "\N{GRINNING FACE}",
    "\ufffd",
    "x" * 5000,
    "word " * 20_000,
]


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


@pytest.fixture(scope="module")
def model() -> StaticModel:
    model = StaticModel()
    model.load()
    return model


def rows(computed: Computed) -> Any:
    return numpy.frombuffer(computed.floats, dtype=numpy.float32).reshape(-1, computed.dim)


# ---- the model


@pytest.mark.parametrize("texts", [PASSAGES, ODD], ids=["passages", "odd"])
def test_vectors_are_wordllamas_to_the_last_bit(
    texts: list[str], model: StaticModel, original: Any
) -> None:
    expected = original.embed(texts, norm=True, batch_size=1)
    assert model.embed(texts).floats == expected.tobytes()
    one_by_one = b"".join(model.embed([text]).floats for text in texts)
    assert one_by_one == expected.tobytes()


def test_lists_do_not_change_vectors(original: Any, model: StaticModel) -> None:
    assert model.embed(PASSAGES).floats == original.embed(PASSAGES, norm=True).tobytes()


@pytest.mark.parametrize("dimensions", [1, 8, 255, 256, 1000])
def test_dimensions_cut_and_renormalise(dimensions: int, model: StaticModel) -> None:
    whole = rows(model.embed(PASSAGES[:20]))
    cut = rows(model.embed(PASSAGES[:20], dimensions))
    expected = whole[:, :dimensions]
    expected = expected / numpy.linalg.norm(expected, axis=1, keepdims=True)
    assert cut.shape == (20, min(dimensions, 256))
    assert numpy.allclose(cut, expected, atol=1e-6)
    assert numpy.allclose(numpy.linalg.norm(cut, axis=1), 1.0, atol=1e-6)


def test_an_empty_text_has_a_unit_vector(model: StaticModel) -> None:
    computed = model.embed(["", "a", ""])
    vectors = rows(computed)
    assert numpy.isfinite(vectors).all()
    assert numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert (vectors[0] == vectors[2]).all()
    assert computed.tokens == 3


def test_the_card_is_the_models(model: StaticModel) -> None:
    card = model.card()
    assert (card.name, card.dim, card.capabilities) == ("wordllama:latest", 256, ("embedding",))
    assert len(card.digest) == 64
    assert card.size > 10_000_000
    assert StaticModel(["nomic-embed-text", "wordllama"]).names == (
        "wordllama:latest",
        "nomic-embed-text:latest",
    )


def test_it_needs_no_network_and_leaves_logging_alone() -> None:
    """In a process where every socket is refused; nothing heavy is loaded before it is used."""
    code = """
import logging, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network was used")

for name in ("connect", "connect_ex", "sendto", "sendmsg", "bind"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse

from aiosollol.embedded import EmbeddedNode
from aiosollol.embedded.model import StaticModel
assert not {"numpy", "wordllama", "tokenizers"} & set(sys.modules), "loaded on import"
computed = StaticModel().embed(["hello world"])
assert len(computed.floats) == 256 * 4
assert logging.getLogger().handlers == [] and logging.getLogger().level == logging.WARNING
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


# ---- the node


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
    with pytest.raises(MissingExtra, match=r"pip install 'aiosollol\[embedded\]'"):
        async with EmbeddedNode(process=process):
            pass
    with pytest.raises(MissingExtra):
        StaticModel().load()


# ---- responsiveness, with a model whose work ends when the test says so


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


# ---- a process of its own


async def test_its_process_is_gone_when_it_is_left() -> None:
    node = EmbeddedNode(process=True)
    async with node:
        pid = node.pid
        assert pid is not None
        os.kill(pid, 0)
        assert "in its own process" in repr(node)
    assert node.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_its_process_is_gone_when_the_start_is_cancelled() -> None:
    node = EmbeddedNode(process=True)
    entering = asyncio.create_task(node.__aenter__())
    while node.pid is None:
        await asyncio.sleep(0)
    pid = node.pid
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_process_that_is_never_ready_is_ended() -> None:
    process = ServerProcess("n", "http.server", ["--bind", "127.0.0.1", "0"], start_timeout=0.5)
    starting = asyncio.create_task(process.start())
    while process.pid is None:
        await asyncio.sleep(0)
    pid = process.pid
    with pytest.raises(NodeTimeout, match=r"not ready within 0\.5 s"):
        await starting
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process by its descriptor")
def test_its_process_ends_with_its_parent_however_that_dies() -> None:
    code = """
import asyncio, os, signal
from aiosollol.embedded import EmbeddedNode

async def main():
    async with EmbeddedNode(process=True) as node:
        print(node.pid, flush=True)
        input()
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        descriptor = os.pidfd_open(pid)
        try:
            parent.communicate("now\n", timeout=60)
            assert parent.returncode == -signal.SIGKILL
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            assert waiting.poll(60_000), "it still runs"
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_gracefully(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "aiosollol.embedded", "--port", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on http://127.0.0.1:")
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_without_a_pipe_it_does_not_watch_stdin() -> None:
    """A service manager gives it /dev/null, which ends at once."""
    with subprocess.Popen(
        [sys.executable, "-m", "aiosollol.embedded"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        code = f"import urllib.request as r; print(r.urlopen('{url}/api/tags').read().decode())"
        asked = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert json.loads(asked.stdout)["models"][0]["name"] == "wordllama:latest", asked.stderr
        process.terminate()
        assert process.wait(60) == 0
