"""One node for one server, whatever its addresses: localhost, host names and containers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from discovery_servers import (
    Peer,
    free_port,
    ollama,
)
from search_parts import HOSTS, LONG, Placed, Servers, all_of, searching, urls

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be so busy that it does not answer itself in milliseconds."""
    monkeypatch.setattr("aiosollol.discovery.sweep.home_seconds", lambda timeout: LONG)


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        yield Servers(stack, free_port(("127.0.0.1", *HOSTS)))


async def test_localhost_and_our_own_address_are_one_node(servers: Servers) -> None:
    loopback = await servers.start(ollama(), "127.0.0.1")
    lan = await servers.start(ollama(), HOSTS[0])
    search = searching(around=[Placed("lan", f"{HOSTS[0]}/28")], ports=[servers.port])
    (found,) = await all_of(search)
    assert (found.url, found.source) == (lan.url, "scan")
    assert loopback.connections == lan.connections == 1


async def test_a_named_localhost_is_named_by_its_real_address(servers: Servers) -> None:
    await servers.start(ollama(), "127.0.0.1")
    lan = await servers.start(ollama(), HOSTS[0])
    (found,) = await all_of(
        searching(
            around=[Placed("lan", f"{HOSTS[0]}/28")],
            ports=[servers.port],
            environ={"OLLAMA_HOST": f"0.0.0.0:{servers.port}"},
        )
    )
    assert (found.url, found.source) == (lan.url, "environment")


async def test_a_host_name_of_this_machine_is_this_machine(servers: Servers) -> None:
    node = await servers.start(ollama(), "127.0.0.1")
    found = await all_of(
        searching(
            host_name="localhost.localdomain",
            known=[f"http://localhost:{servers.port}", f"http://127.0.0.1:{servers.port}"],
            use_scan=False,
        )
    )
    assert [each.url for each in found] == [f"http://localhost:{node.port}"]


async def test_two_servers_of_one_machine_stay_two(servers: Servers) -> None:
    one = await servers.start(ollama(models=["a"]), "127.0.0.1")
    two = await servers.start(ollama(models=["b"]), HOSTS[0])
    search = searching(around=[Placed("lan", f"{HOSTS[0]}/28")], ports=[servers.port])
    assert urls(await all_of(search)) == sorted([one.url, two.url])


async def test_an_own_address_that_answers_late_is_the_same_node(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    monkeypatch.setattr("aiosollol.discovery.sweep.home_seconds", lambda timeout: 0.0)
    found_first = asyncio.Event()

    async def late(peer: Peer) -> None:
        await found_first.wait()
        await ollama()(peer)

    prompt = await servers.start(ollama(), "127.0.0.1")
    await servers.start(late, HOSTS[0])
    await servers.start(late, HOSTS[1])
    around = [Placed("lan", f"{HOSTS[0]}/28"), Placed("lan", f"{HOSTS[1]}/28")]
    found = []
    async with asyncio.timeout(20):
        async for node in searching(around=around, ports=[servers.port]):
            found.append(node.url)
            found_first.set()
    assert found == [prompt.url]
    assert "is left out: this server of this machine was found already" in caplog.text


async def test_localhost_can_be_left_out(servers: Servers) -> None:
    loopback = await servers.start(ollama(), "127.0.0.1")
    await servers.start(ollama(), HOSTS[0])
    search = searching(
        ports=[servers.port],
        exclude_localhost=True,
        known=[loopback.url, f"http://localhost:{servers.port}"],
    )
    assert await all_of(search) == []  # all of 127.0.0.0/8 is loopback
    assert loopback.connections == 0


async def test_a_container_is_known_by_the_address_of_its_machine(servers: Servers) -> None:
    lan, container = HOSTS[0], HOSTS[4]
    published = await servers.start(ollama(), lan)
    inside = await servers.start(ollama(), container)
    around = [Placed("lan", f"{lan}/32"), Placed("docker", f"{HOSTS[3]}/30")]
    given: dict[str, Any] = {"around": around, "ports": [servers.port], "subnets": []}
    (found,) = await all_of(searching(**given, known=[inside.url]))
    assert (found.url, found.source) == (published.url, "known")
    (found,) = await all_of(searching(**given, known=[inside.url], auto_resolve_docker=False))
    assert found.url == inside.url
    # Found by both of its addresses it is one node too.
    (found,) = await all_of(searching(**given, known=[inside.url, published.url]))
    assert found.url == published.url


async def test_a_container_that_is_not_published_stays_as_it_is(servers: Servers) -> None:
    container = await servers.start(ollama(models=["a"]), HOSTS[4])
    around = [Placed("lan", f"{HOSTS[0]}/32"), Placed("docker", f"{HOSTS[3]}/30")]
    given: dict[str, Any] = {"around": around, "ports": [servers.port], "subnets": []}
    (found,) = await all_of(searching(**given, known=[container.url]))
    assert found.url == container.url
    # What is at our address on that port is another one.
    other = await servers.start(ollama(models=["b"]), HOSTS[0])
    found_all = await all_of(searching(**given, known=[container.url]))
    assert [each.url for each in found_all] == [container.url]
    assert other.connections == 1


async def test_of_two_equal_containers_one_is_the_published_one(servers: Servers) -> None:
    published = await servers.start(ollama(), HOSTS[0])
    containers = [await servers.start(ollama(), HOSTS[last]) for last in (4, 5)]
    around = [Placed("lan", f"{HOSTS[0]}/32"), Placed("docker", f"{HOSTS[3]}/29")]
    search = searching(
        around=around, ports=[servers.port], subnets=[], known=[each.url for each in containers]
    )
    found = urls(await all_of(search))
    assert len(found) == 2
    assert published.url in found
