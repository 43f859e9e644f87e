"""The end of a search: left early, cancelled, failed, or never begun."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager

import pytest
from discovery_servers import (
    free_port,
    ollama,
)
from search_parts import (
    DEFAULTS,
    HOSTS,
    LONG,
    Servers,
    all_of,
    announcing,
    no_announcements,
    searching,
    urls,
)

from aiosollol.discovery import Search
from aiosollol.discovery.local_machine import NetworkNeighbourhood
from aiosollol.discovery.options import SearchOptions
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be so busy that it does not answer itself in milliseconds."""
    monkeypatch.setattr("aiosollol.discovery.sweep.home_seconds", lambda timeout: LONG)


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        yield Servers(stack, free_port(("127.0.0.1", *HOSTS)))


def sockets() -> int:
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize("how", ["break", "aclose", "block", "cancel", "error"])
async def test_who_leaves_early_leaves_nothing_behind(how: str) -> None:
    async with AsyncExitStack() as stack:
        port = free_port(("127.0.0.1", *HOSTS))
        node = await stack.enter_async_context(FakeOllama(host=HOSTS[0], port=port))
        stack.enter_context(stalling(HOSTS[1:], port))
        before = sockets()
        search = searching(ports=[port], browse=announcing(then_ends=False))
        if how == "break":
            async for found in search:
                assert found.url == node.url
                break
            del found
            gc.collect()
        elif how == "aclose":
            nodes = aiter(search)
            await anext(nodes)
            await nodes.aclose()
        elif how == "block":
            async with search:
                await anext(aiter(search))
            assert "over" in repr(search)
        elif how == "cancel":
            task = asyncio.create_task(all_of(search))
            while not search.addresses:
                await asyncio.sleep(0)
            assert "under way" in repr(search)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        else:
            with pytest.raises(ZeroDivisionError):
                async with search:
                    async for _ in search:
                        raise ZeroDivisionError
        async with asyncio.timeout(10):
            while "over" not in repr(search):
                await asyncio.sleep(0)
        # The server that was asked closes its end a little later.
        async with asyncio.timeout(10):
            while sockets() > before:
                await asyncio.sleep(0)


@contextmanager
def stalling(hosts: Sequence[str], port: int) -> Iterator[None]:
    """Listeners that take connections and never look at them."""
    with ExitStack() as stack:
        for host in hosts:
            listener = stack.enter_context(socket.socket())
            listener.bind((host, port))
            listener.listen(16)
        yield


async def test_a_block_may_be_left_and_its_iteration_resumed(servers: Servers) -> None:
    for host in HOSTS[:3]:
        await servers.start(ollama(), host)
    seen = []
    async with searching(ports=[servers.port]) as search:
        async for node in search:
            seen.append(node.url)
            break
        seen += [node.url async for node in search]
    assert len(set(seen)) == len(seen) == 3


async def test_a_search_that_never_began() -> None:
    search = searching()
    assert "new" in repr(search)
    assert (search.addresses, search.open_at_most, search.seconds) == (0, 0, 0.0)
    await search.aclose()
    await search.aclose()
    assert await all_of(search) == []
    assert search.addresses == 0


async def test_what_goes_wrong_in_it_is_raised() -> None:
    async def surroundings() -> NetworkNeighbourhood:
        raise ZeroDivisionError

    search = Search(
        SearchOptions.parse(**DEFAULTS), surroundings=surroundings, browse=no_announcements
    )
    with pytest.raises(ZeroDivisionError):
        await all_of(search)


async def test_a_machine_that_does_not_tell_its_networks(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    async def surroundings() -> NetworkNeighbourhood:
        raise ImportError("no netifaces here")

    node = await servers.start(ollama(), HOSTS[0])
    options = SearchOptions.parse(**{**DEFAULTS, "ports": [servers.port]})
    search = Search(options, surroundings=surroundings, browse=no_announcements)
    assert urls(await all_of(search)) == [node.url]
    assert "no netifaces here" in caplog.text


async def test_too_many_open_files_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def connect(host: str, port: int) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("aiosollol.discovery.prober.connect", connect)
    assert await all_of(searching()) == []
    assert caplog.text.count("ulimit -n") == 1
