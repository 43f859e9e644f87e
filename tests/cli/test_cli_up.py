"""``aiosollol up`` as its users run it: one or several processes, under load and signals."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from up_process import MODELS, embed, running, text_of

from aiosollol.testing.server import FakeOllamaProcess

pytestmark = pytest.mark.anyio
pytest.importorskip("prometheus_client")


@pytest.fixture(scope="module")
async def node() -> AsyncIterator[str]:
    async with FakeOllamaProcess(models=MODELS, slots=64, seconds_per_chat_token=0.01) as fake:
        yield fake.url


async def chat(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    """A streamed chat: its parts."""
    messages = [{"role": "user", "content": "one two three four five six seven eight nine ten"}]
    body = {"model": "llama3.2", "messages": messages}
    async with session.post(f"{url}/api/chat", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return [json.loads(line) async for line in answer.content]


class Load:
    """Clients that ask again and again until they are refused a connection, or are told to end.

    done: requests that were answered. failed: those that were begun and came to nothing.
    """

    def __init__(self, url: str, clients: int = 9) -> None:
        self._url = url
        self.done = 0
        self.failed: list[str] = []
        self.is_over = False
        self._tasks = [asyncio.create_task(self._ask(n % 3)) for n in range(clients)]

    async def _ask(self, kind: int) -> None:
        """Streams, or short requests: on a connection that is kept, or each on a new one."""
        connector = aiohttp.TCPConnector(force_close=kind == 2)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not self.is_over:
                try:
                    if kind == 0:
                        assert (await chat(session, self._url))[-1]["done"] is True
                    else:
                        assert await embed(session, self._url) == 200
                except aiohttp.ClientConnectorError:
                    return  # it listens no more
                except Exception as error:
                    self.failed.append(repr(error))
                    return
                self.done += 1

    async def reaches(self, count: int) -> None:
        while self.done < count and not self.failed:
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        await asyncio.gather(*self._tasks)


async def test_what_it_says(tmp_path: Path, node: str) -> None:
    async with running(tmp_path, f"--node={node}", "--no-autobatch") as gateway:
        url = await gateway.url()
        assert await gateway.said("Nodes: ") == f"Nodes: {node}"
        async with aiohttp.ClientSession() as session:
            assert await embed(session, url) == 200
        assert "sollol_requests_total" in await text_of(await gateway.metrics_url())
        gateway.send(signal.SIGINT)
        assert await gateway.end() == 0
        assert gateway.lines[-1] == "The gateway has ended."
        assert len(gateway.lines) == 5, gateway.lines


@pytest.mark.parametrize("workers", [1, 2])
async def test_sigterm_under_load_fails_no_request(tmp_path: Path, node: str, workers: int) -> None:
    arguments = (f"--node={node}", "--no-autobatch", f"--workers={workers}")
    async with running(tmp_path, *arguments) as gateway:
        load = Load(await gateway.url())
        await load.reaches(100)
        gateway.send(signal.SIGTERM)
        await load.end()
        assert await gateway.end() == 0
    assert load.failed == []
    assert load.done >= 100


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with (
        FakeOllamaProcess(models=MODELS, seconds_per_chat_token=3600.0) as slow,
        running(tmp_path, f"--node={slow.url}", "--no-autobatch") as gateway,
    ):
        url = await gateway.url()
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(chat(session, url))
            await under_way(session, url)
            gateway.send(signal.SIGTERM)
            while await is_open(url):
                await asyncio.sleep(0.01)
            assert not asking.done()
            gateway.send(signal.SIGTERM)
            assert await gateway.end() == 128 + signal.SIGTERM
            with pytest.raises(aiohttp.ClientError):
                await asking
        assert "1 requests were cut off" in gateway.lines


async def under_way(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until a request is under way besides the one that asks."""
    while True:
        async with session.get(f"{url}/metrics") as answer:
            if "sollol_active_requests 2.0" in await answer.text():
                return


async def is_open(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_under_load_fails_no_request(
    tmp_path: Path, node: str, workers: int
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"hosts = ['{node}']\nautobatch_enabled = false\nprocesses = {workers}\n")
    async with (
        FakeOllamaProcess(models=MODELS, slots=64) as other,
        running(tmp_path, f"--config={file}") as gateway,
    ):
        load = Load(await gateway.url())
        await load.reaches(20)
        file.write_text(
            f"hosts = ['{node}', '{other.url}']\nautobatch_enabled = false\n"
            f"processes = {workers}\nchat_timeout = 7\nrate_limit = 1000000\n"
        )
        gateway.send(signal.SIGHUP)
        told = await gateway.said("read again: applied: hosts, rate_limit", times=workers)
        assert "after a restart: chat_timeout" in told
        await load.reaches(load.done + 50)
        file.write_text("hosts = 3\n")
        gateway.send(signal.SIGHUP)
        await gateway.said("the settings are unchanged: ", times=workers)
        await load.reaches(load.done + 20)
        load.is_over = True
        await load.end()
        told = await text_of(await gateway.metrics_url())
        assert f'host="{other.url.removeprefix("http://")}"' in told
        gateway.send(signal.SIGTERM)
        assert await gateway.end() == 0
    assert load.failed == []


async def test_a_killed_process_is_replaced_and_the_others_serve(tmp_path: Path, node: str) -> None:
    arguments = (f"--node={node}", "--no-autobatch", "--workers=2")
    async with running(tmp_path, *arguments) as gateway:
        url = await gateway.url()
        first, second = await gateway.pids()
        os.kill(first, signal.SIGKILL)
        # What was on its way to the one that died may fail; whoever asks again is served.
        served = 0
        while served < 20:
            async with aiohttp.ClientSession() as session:
                with suppress(aiohttp.ClientError):
                    served += await embed(session, url) == 200
        await gateway.said("process 0 ended with SIGKILL; restarting it in 0.1 s")
        while len(await processes(await gateway.metrics_url())) < 2:
            await asyncio.sleep(0.05)
        os.kill(second, 0)  # the other one was left alone
        gateway.send(signal.SIGTERM)
        assert await gateway.end() == 0


async def processes(metrics_url: str) -> set[str]:
    """Which processes the metrics tell of."""
    text = await text_of(metrics_url)
    return {index for index in "0123" if f'sollol_connections{{process="{index}"}}' in text}


async def test_processes_end_when_their_parent_is_killed(tmp_path: Path, node: str) -> None:
    arguments = (f"--node={node}", "--no-autobatch", "--workers=2")
    async with running(tmp_path, *arguments) as gateway:
        url = await gateway.url()
        gateway.process.kill()
        while await is_open(url):
            await asyncio.sleep(0.01)


async def burst(url: str, count: int) -> Counter[str]:
    """Single texts, all at once, each on a connection of its own: how many got which answer."""
    host, port = url.removeprefix("http://").split(":")

    async def one(number: int) -> str:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            body = b'{"model": "all-minilm", "input": ["text %d"]}' % number
            head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = await reader.read()
        finally:
            writer.close()
        return answer.partition(b"\r\n")[0].decode() or "closed"

    return Counter(await asyncio.gather(*map(one, range(count))))


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ([], None),  # more than the 1,000 that are the limit of a key
        (["--max-connections=50"], None),
        (["--max-in-flight=50"], None),
        ([], 300),  # of which connections of clients have 225
        (["--workers=2"], 300),
    ],
)
async def test_a_burst_of_single_texts(
    tmp_path: Path, node: str, options: list[str], files: int | None
) -> None:
    """As Open WebUI sends them: a request for each passage of a document, without a second try."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    try:
        arguments = (f"--node={node}", "--no-autobatch", *options)
        async with running(tmp_path, *arguments, files=files) as gateway:
            count = 1200 if files is None and not options else 600
            assert await burst(await gateway.url(), count) == {"HTTP/1.1 200 OK": count}
            gateway.send(signal.SIGTERM)
            assert await gateway.end() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
