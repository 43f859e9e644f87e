"""Announcements in a search: which are followed, and how zeroconf may fail."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from discovery_servers import (
    free_port,
    ollama,
    silent,
)
from search_parts import HOSTS, LONG, Placed, Servers, all_of, announcing, heard, searching, urls

from aiosollol.discovery.mdns import Gone, News
from aiosollol.discovery.sweep import SearchRun
from aiosollol.errors import NodeUnreachable

pytestmark = pytest.mark.anyio
SHORT = 0.2


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be so busy that it does not answer itself in milliseconds."""
    monkeypatch.setattr("aiosollol.discovery.sweep.home_seconds", lambda timeout: LONG)


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        yield Servers(stack, free_port(("127.0.0.1", *HOSTS)))


@pytest.fixture
def loopback_may_announce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SearchRun, "_may_be_announced", lambda self, address: True)


@pytest.mark.usefixtures("loopback_may_announce")
async def test_an_announced_node_on_another_port(servers: Servers) -> None:
    node = await servers.start(ollama(), HOSTS[0])
    news = heard(node.url, machine="abc", agent=11435)
    gone = Gone("old._ollama._tcp.local.", (node.url,))
    (found,) = await all_of(searching(browse=announcing(gone, news, news)))
    assert (found.url, found.source) == (node.url, "zeroconf")
    assert (found.name, found.machine) == ("box", "abc")
    assert found.agent == f"http://{HOSTS[0]}:11435"
    assert node.connections == 1


@pytest.mark.usefixtures("loopback_may_announce")
async def test_a_node_with_several_addresses_is_found_once(servers: Servers) -> None:
    first, second = [await servers.start(ollama(), host) for host in HOSTS[:2]]
    dead = f"http://{HOSTS[5]}:{servers.port}"
    search = searching(browse=announcing(heard(dead, first.url, second.url)), use_scan=False)
    assert urls(await all_of(search)) == [first.url]


@pytest.mark.usefixtures("loopback_may_announce")
async def test_who_announces_and_is_swept_is_found_once(servers: Servers) -> None:
    node = await servers.start(ollama(), HOSTS[0])
    search = searching(ports=[servers.port], browse=announcing(heard(node.url)))
    (found,) = await all_of(search)
    assert found.url == node.url
    assert node.connections == 1


@pytest.mark.usefixtures("loopback_may_announce")
async def test_listening_ends_with_the_search(servers: Servers) -> None:
    await servers.start(silent, HOSTS[0])
    news = heard(f"http://{HOSTS[0]}:{servers.port}")
    search = searching(timeout=SHORT, subnets=[], browse=announcing(news, then_ends=False))
    assert await all_of(search) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}",
        "http://127.0.0.17:{port}",
        "http://[::1]:{port}",
        "http://8.8.8.8:{port}",
        "http://[2001:4860:4860::8888]:{port}",
        "http://gpu-box:{port}",
    ],
)
async def test_an_announcement_does_not_lead_us_astray(servers: Servers, url: str) -> None:
    """conftest fails the test if anything is sent to the strangers among them."""
    node = await servers.start(ollama(), HOSTS[0])
    news = heard(url.format(port=servers.port))
    around = [Placed("lan", "10.77.0.5/24")]
    search = searching(around=around, subnets=[], ports=[9], browse=announcing(news))
    assert await all_of(search) == []
    assert node.connections == 0


@pytest.mark.parametrize(
    ("host", "may"),
    [("10.77.0.9", True), ("192.168.1.1", True), ("8.8.4.4", True), ("8.8.8.8", False)],
)
async def test_public_addresses_of_our_own_network_may_announce(
    monkeypatch: pytest.MonkeyPatch, host: str, may: bool
) -> None:
    asked = []

    async def connect(host: str, port: int) -> None:
        asked.append(host)
        raise ConnectionRefusedError

    monkeypatch.setattr("aiosollol.discovery.prober.connect", connect)
    around = [Placed("lan", "8.8.4.5/24")]
    news = heard(f"http://{host}:11434")
    search = searching(around=around, subnets=[], browse=announcing(news))
    assert await all_of(search) == []
    assert (host in asked) is may
    denied = searching(around=around, subnets=[], browse=announcing(news), deny=[host])
    asked.clear()
    assert await all_of(denied) == []
    assert host not in asked


@pytest.mark.parametrize("error", [NodeUnreachable("zeroconf", "no multicast"), KeyError("junk")])
async def test_a_search_goes_on_if_zeroconf_fails(
    servers: Servers, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    @asynccontextmanager
    async def failing() -> AsyncIterator[AsyncIterator[News]]:
        raise error
        yield

    caplog.set_level(logging.INFO, "aiosollol")
    node = await servers.start(ollama(), HOSTS[0])
    assert urls(await all_of(searching(ports=[servers.port], browse=failing))) == [node.url]
    assert "cannot listen to announcements" in caplog.text


async def test_zeroconf_can_be_left_out(servers: Servers) -> None:
    def never() -> Any:
        raise AssertionError

    assert await all_of(searching(ports=[servers.port], browse=never, use_zeroconf=False)) == []
