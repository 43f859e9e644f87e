"""Nodes as they come and go: a script takes the place of the network."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiosollol.core.networks import Discovered, Source
from aiosollol.discovery.mdns import Gone, Heard, News
from aiosollol.discovery.options import SearchOptions
from aiosollol.discovery.search import Arrived, Watch
from aiosollol.errors import InvalidInput, NodeUnreachable
from aiosollol.wire.announcement import Announcement

pytestmark = pytest.mark.anyio

A, B = "http://10.77.0.1:11434", "http://10.77.0.2:11434"
SERVICE = "box._ollama._tcp.local."


def node(url: str, source: Source = "scan") -> Discovered:
    return Discovered(url, "0.33.0", ("m:latest",), source, 0.001)


class Network:
    """Searches, in order, find what `rounds` say, and then never end. What is announced answers."""

    def __init__(self, *rounds: list[str]) -> None:
        self._rounds = list(rounds)
        self.searches: list[SearchOptions] = []
        self.news: asyncio.Queue[News | Exception] = asyncio.Queue()
        self.times_listened = 0

    async def search(self, options: SearchOptions, browse: Any = None) -> AsyncIterator[Discovered]:
        self.searches.append(options)
        if browse is not None:
            async with browse() as news:
                async for each in news:
                    yield node(each.urls[0], "zeroconf")
            return
        if not self._rounds:
            await asyncio.Event().wait()
        for url in self._rounds.pop(0):
            yield node(url)

    @asynccontextmanager
    async def browse(self) -> AsyncIterator[AsyncIterator[News]]:
        self.times_listened += 1

        async def each() -> AsyncIterator[News]:
            while True:
                news = await self.news.get()
                if isinstance(news, Exception):
                    raise news
                yield news

        yield each()

    def watch(self, **options: Any) -> Watch:
        return Watch(interval=0, search=self.search, browse=self.browse, **options)


async def changes(watch: Watch, count: int) -> list[str]:
    shown = []
    async with asyncio.timeout(10):
        for _ in range(count):
            change = await anext(watch)
            if isinstance(change, Arrived):
                shown.append(f"+ {change.node.url}")
            else:
                shown.append(f"- {change.node.url} {change.reason}")
    return shown


async def test_what_searches_find_and_miss() -> None:
    network = Network([A, B], [A], [A, B], [A], [A], [A, B])
    async with network.watch(known=[A]) as watch:
        assert await changes(watch, 4) == [
            f"+ {A}",
            f"+ {B}",
            f"- {B} did not answer 2 times",  # once is nothing
            f"+ {B}",
        ]
        assert set(watch.nodes) == {A, B}
    known = [{address.url for address in each.known} for each in network.searches]
    assert known[:3] == [{A}, {A, B}, {A, B}]
    assert not any(each.use_zeroconf for each in network.searches)


async def test_what_announces_itself_and_says_goodbye() -> None:
    network = Network([A])
    async with network.watch(ports=[7]) as watch:
        assert await changes(watch, 1) == [f"+ {A}"]
        network.news.put_nowait(Heard(SERVICE, (B,), Announcement("box")))
        assert await changes(watch, 1) == [f"+ {B}"]
        assert watch.nodes[B].source == "zeroconf"
        network.news.put_nowait(Heard(SERVICE, (B,), Announcement("box", version="0.34.0")))
        network.news.put_nowait(Gone("other._ollama._tcp.local.", (A,)))  # A never said hello
        network.news.put_nowait(Gone(SERVICE, (B,)))
        assert await changes(watch, 1) == [f"- {B} said goodbye"]
        assert set(watch.nodes) == {A}
    asked = [each for each in network.searches if each.use_zeroconf]
    assert asked
    assert not any(each.use_scan or each.known or each.named for each in asked)


async def test_listening_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    network = Network()
    network.news.put_nowait(NodeUnreachable("zeroconf", "no network"))
    network.news.put_nowait(Heard(SERVICE, (B,), Announcement("box")))
    async with network.watch() as watch:
        assert await changes(watch, 1) == [f"+ {B}"]
    assert network.times_listened == 2
    assert "no network" in caplog.text


async def test_without_zeroconf_nobody_listens() -> None:
    network = Network([A])
    async with network.watch(use_zeroconf=False) as watch:
        assert await changes(watch, 1) == [f"+ {A}"]
    assert network.times_listened == 0


async def test_leaving_ends_it() -> None:
    network = Network([A])
    async with network.watch() as watch:
        await changes(watch, 1)
        waiting = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await changes(watch, 1)
    assert [each async for each in watch] == []
    await asyncio.wait([waiting])
    assert isinstance(waiting.exception(), RuntimeError | StopAsyncIteration)


async def test_what_goes_wrong_is_raised() -> None:
    network = Network()
    network.news.put_nowait(ZeroDivisionError())
    async with network.watch() as watch:
        with pytest.raises(ExceptionGroup) as caught:
            await changes(watch, 1)
        assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


def test_options_are_checked_at_once() -> None:
    with pytest.raises(InvalidInput, match="timeout"):
        Watch(timeout=0)
