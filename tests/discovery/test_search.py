"""The search on named networks of loopback: the servers that are found, and those that are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from discovery_servers import (
    NEVER_DONE,
    PROMPTLY_WRONG,
    Peer,
    every_wrong,
    free_port,
    ollama,
    redirecting,
    serving,
    silent,
    tags,
)
from search_parts import HOSTS, LONG, Servers, all_of, searching, urls

from aiosollol.core.networks import Discovered
from aiosollol.discovery import Search, discover_ollama_nodes
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


# ---- what is found


async def test_nodes_in_a_whole_c_network(servers: Servers) -> None:
    hosts = [f"127.0.0.{last}" for last in (11, 12, 77, 200, 254)]
    nodes = [await servers.start(ollama(models=["m", "n:1b"]), host) for host in hosts]
    search = searching(ports=[servers.port], subnets=["127.0.0.0/24"])
    found = await all_of(search)
    assert urls(found) == sorted(node.url for node in nodes)
    first = found[0]
    assert (first.version, first.models, first.source) == ("0.33.0", ("m:latest", "n:1b"), "scan")
    assert 0 <= first.seconds < 10
    assert (first.name, first.machine, first.fingerprint, first.agent) == ("", "", "", "")
    assert search.addresses == 254
    assert 5 <= search.open_at_most <= 256
    assert search.skipped == ()
    assert 0 < search.seconds < 20
    assert [node.connections for node in nodes] == [1] * 5
    assert [len(node.heads) for node in nodes] == [2] * 5
    host = f"Host: {hosts[0]}:{servers.port}\r\n".encode()
    assert all(host in head for head in nodes[0].heads)


async def test_a_real_fake() -> None:
    async with FakeOllama(models=["all-minilm"], version="1.2.3") as node:
        (found,) = await all_of(searching(ports=[node.port], subnets=[]))
        assert (found.url, found.version) == (node.url, "1.2.3")
        assert found.models == ("all-minilm:latest",)


async def test_sockets_are_bounded(servers: Servers) -> None:
    """Whoever takes his time keeps his place; who comes next gets one as soon as it is free."""
    release = asyncio.Event()

    async def held(peer: Peer) -> None:
        await release.wait()

    slow = [await servers.start(held, host) for host in HOSTS[:8]]
    node = await servers.start(ollama(), HOSTS[-1])
    search = searching(ports=[servers.port], max_open=5)
    found = asyncio.create_task(all_of(search))
    async with asyncio.timeout(20):
        while sum(each.open for each in slow) < 3:
            await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)
    assert sum(each.connections for each in slow) == 3  # two places are for who is named
    release.set()
    assert urls(await found) == [node.url]
    assert 3 <= search.open_at_most <= 5


async def test_several_ports(servers: Servers) -> None:
    first = await servers.start(ollama(), HOSTS[0])
    async with serving(ollama(), HOSTS[0]) as second:
        found = await all_of(searching(ports=[servers.port, second.port, servers.port]))
        assert urls(found) == sorted([first.url, second.url])


async def test_named_nodes_without_a_sweep(servers: Servers) -> None:
    named, known, other = [await servers.start(ollama(), host) for host in HOSTS[:3]]
    search = searching(
        ports=[servers.port],
        use_scan=False,
        known=[known.url, known.url, named.url],
        environ={"OLLAMA_HOST": named.url},
    )
    found = {node.url: node.source for node in await all_of(search)}
    assert found == {named.url: "environment", known.url: "known"}
    assert other.connections == 0
    assert named.connections == known.connections == 1
    assert search.addresses == 3  # and localhost


async def test_the_environment_is_first_in_the_list(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = asyncio.Event()

    async def late(peer: Peer) -> None:
        await slow.wait()
        await ollama()(peer)

    await servers.start(late, HOSTS[0])
    await servers.start(ollama(), HOSTS[1])

    def search(**given: Any) -> Search:
        environ = {"OLLAMA_HOST": f"{HOSTS[0]}:{servers.port}"}
        known = [f"{HOSTS[1]}:{servers.port}"]
        found = searching(**given, ports=[servers.port], environ=environ, known=known)
        tell = found._arrived.put_nowait

        def arrived(node: Discovered | None) -> None:
            tell(node)
            slow.set()  # the other one was quicker

        monkeypatch.setattr(found._arrived, "put_nowait", arrived)
        return found

    monkeypatch.setattr("aiosollol.discovery.discover", search)
    assert await discover_ollama_nodes(timeout=LONG) == [
        {"host": HOSTS[0], "port": str(servers.port)},
        {"host": HOSTS[1], "port": str(servers.port)},
    ]


async def test_the_first_is_enough(servers: Servers) -> None:
    waiting = [await servers.start(silent, host) for host in HOSTS[:3]]
    for host in HOSTS[3:6]:
        await servers.start(ollama(), host)
    search = searching(ports=[servers.port], discover_all_nodes=False)
    assert len(await all_of(search)) == 1
    for server in waiting:
        await server.until(lambda server=server: server.open == 0)  # type: ignore[misc]


async def test_the_first_is_the_named_one_if_it_answers(servers: Servers) -> None:
    slow = asyncio.Event()

    async def late(peer: Peer) -> None:
        await slow.wait()
        await ollama()(peer)

    async def answered(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b'{"version": "0.33.0"}')
        await peer.request()
        await peer.answer(tags())
        slow.set()

    named = await servers.start(late, HOSTS[0])
    await servers.start(answered, HOSTS[1])
    options = {"ports": [servers.port], "discover_all_nodes": False}
    found = await all_of(searching(**options, environ={"OLLAMA_HOST": named.url}))
    assert urls(found) == [named.url]
    gone = {"OLLAMA_HOST": f"{HOSTS[5]}:{servers.port}"}
    assert len(await all_of(searching(**options, environ=gone))) == 1


async def test_a_node_that_closes_its_connections(servers: Servers) -> None:
    node = await servers.start(ollama(closes=True), HOSTS[0])
    assert urls(await all_of(searching(ports=[servers.port]))) == [node.url]
    assert node.connections == 2


async def test_a_path_in_the_name(servers: Servers) -> None:
    node = await servers.start(ollama(), HOSTS[0])
    found = await all_of(searching(known=[f"{node.url}/llm/"], use_scan=False))
    assert urls(found) == [f"{node.url}/llm"]
    assert b"GET /llm/api/version " in node.heads[0]


async def test_a_name_is_resolved(servers: Servers) -> None:
    node = await servers.start(ollama(), "127.0.0.1")
    environ = {"OLLAMA_HOST": f"http://localhost:{servers.port}"}
    (found,) = await all_of(searching(environ=environ, subnets=[]))
    assert found.url == f"http://localhost:{node.port}"
    assert b"Host: localhost:" in node.heads[0]


async def test_a_name_that_nobody_knows() -> None:
    search = searching(known=["http://gpu-box.invalid:11434"], subnets=[])
    assert await all_of(search) == []


async def test_a_search_may_find_nothing() -> None:
    port = free_port(("127.0.0.1", *HOSTS))
    search = searching(ports=[port])
    assert await all_of(search) == []
    assert search.addresses == 15
    assert await all_of(search) == []  # and says so again


# ---- what is not a node


@pytest.mark.parametrize("what", PROMPTLY_WRONG)
async def test_what_is_no_ollama_is_not_taken_for_one(servers: Servers, what: str) -> None:
    """Nor does it delay anybody, itself included: the deadline is far off."""
    wrong = await servers.start(PROMPTLY_WRONG[what], HOSTS[0])
    node = await servers.start(ollama(), HOSTS[1])
    assert urls(await all_of(searching(ports=[servers.port]))) == [node.url]
    await wrong.until(lambda: wrong.connections >= 1 and wrong.open == 0)


@pytest.mark.parametrize("what", NEVER_DONE)
async def test_what_never_answers_delays_nobody(servers: Servers, what: str) -> None:
    wrong = await servers.start(NEVER_DONE[what], HOSTS[0])
    node = await servers.start(ollama(), HOSTS[1])
    async with asyncio.timeout(20), searching(ports=[servers.port]) as search:
        async for found in search:
            assert found.url == node.url
            break
    assert search.seconds < LONG
    assert urls(await all_of(searching(ports=[servers.port], timeout=1.0))) == [node.url]
    await wrong.until(lambda: wrong.open == 0)


async def test_all_that_is_wrong_at_once(servers: Servers) -> None:
    hosts = iter(f"127.0.0.{last}" for last in range(33, 60))
    for _, behave in every_wrong():
        await servers.start(behave, next(hosts))
    nodes = [await servers.start(ollama(), next(hosts)) for _ in range(3)]
    search = searching(ports=[servers.port], subnets=["127.0.0.32/27"])
    async with asyncio.timeout(20), search:
        seen = set()
        async for node in search:
            seen.add(node.url)
            if len(seen) == 3:
                break
    assert seen == {node.url for node in nodes}


async def test_a_redirect_is_not_followed(servers: Servers) -> None:
    elsewhere = await servers.start(ollama(), "127.0.0.99")
    await servers.start(redirecting(elsewhere.url), HOSTS[0])
    assert await all_of(searching(ports=[servers.port])) == []
    assert elsewhere.connections == 0
