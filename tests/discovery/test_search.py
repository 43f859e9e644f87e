"""The search as a whole, on networks of loopback that are named: who is found, and who is not.

Deadlines are far off where nobody is to wait for them, so a test that passes has not waited.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from discovery_servers import (
    FINGERPRINT,
    NEVER_DONE,
    PROMPTLY_WRONG,
    Behaviour,
    Peer,
    Server,
    every_wrong,
    free_port,
    ollama,
    redirecting,
    server_tls,
    serving,
    silent,
    tags,
)

from aiosollol.core.networks import Discovered, Interface, Kind
from aiosollol.discovery import Search, discover, discover_ollama_nodes
from aiosollol.discovery.local_machine import NetworkNeighbourhood
from aiosollol.discovery.mdns import Gone, Heard, News
from aiosollol.discovery.options import SearchOptions
from aiosollol.discovery.sweep import SearchRun
from aiosollol.errors import ConfigError, InvalidInput, NodeUnreachable
from aiosollol.testing import FakeOllama
from aiosollol.wire.announcement import Announcement

pytestmark = pytest.mark.anyio

NET = "127.0.0.16/28"
HOSTS = tuple(f"127.0.0.{last}" for last in range(17, 31))
LONG = 30.0  # seconds that nobody waits
SHORT = 0.2

DEFAULTS: dict[str, Any] = {
    "timeout": LONG,
    "ports": (11434,),
    "subnets": (NET,),
    "known": (),
    "allow": (),
    "deny": (),
    "trusted": None,
    "exclude_localhost": False,
    "auto_resolve_docker": True,
    "discover_all_nodes": True,
    "use_zeroconf": True,
    "use_scan": True,
    "max_open": 256,
    "max_addresses": 1024,
    "environ": {},
}


class Placed(Interface):
    """An interface on a loopback address that says that it is of another kind."""

    __slots__ = ("_kind",)

    def __init__(self, kind: Kind, address: str) -> None:
        super().__init__(f"{kind}0", IPv4Interface(address))
        object.__setattr__(self, "_kind", kind)

    @property
    def kind(self) -> Kind:
        return self._kind  # type: ignore[attr-defined, no-any-return]


@asynccontextmanager
async def nobody() -> AsyncIterator[AsyncIterator[News]]:
    async def none() -> AsyncIterator[News]:
        return
        yield

    yield none()


def announcing(*news: News, then_ends: bool = True) -> Any:
    """A `browse` that hears these, and then nothing more."""

    @asynccontextmanager
    async def browse() -> AsyncIterator[AsyncIterator[News]]:
        async def each() -> AsyncIterator[News]:
            for one in news:
                yield one
            if not then_ends:
                await asyncio.Event().wait()

        yield each()

    return browse


def heard(*urls: str, **fields: Any) -> Heard:
    name = fields.pop("name", "box")
    return Heard(f"{name}._ollama._tcp.local.", urls, Announcement(name, **fields))


def searching(
    *, around: Sequence[Interface] = (), host_name: str = "", browse: Any = nobody, **given: Any
) -> Search:
    async def surroundings() -> NetworkNeighbourhood:
        return NetworkNeighbourhood(tuple(around), (), host_name)

    options = SearchOptions.parse(**{**DEFAULTS, **given})
    return Search(options, surroundings=surroundings, browse=browse)


async def all_of(search: Search) -> list[Discovered]:
    async with asyncio.timeout(20):
        return [node async for node in search]


def urls(nodes: Sequence[Discovered]) -> list[str]:
    return sorted(node.url for node in nodes)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be so busy that it does not answer itself in milliseconds."""
    monkeypatch.setattr("aiosollol.discovery.sweep.home_seconds", lambda timeout: LONG)


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        yield Servers(stack, free_port(("127.0.0.1", *HOSTS)))


class Servers:
    """Servers on one port of several addresses."""

    def __init__(self, stack: AsyncExitStack, port: int) -> None:
        self._stack = stack
        self.port = port

    async def start(self, behave: Behaviour, host: str, **options: Any) -> Server:
        return await self._stack.enter_async_context(serving(behave, host, self.port, **options))


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


# ---- its end


async def tasks_are_over() -> None:
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)


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

    search = Search(SearchOptions.parse(**DEFAULTS), surroundings=surroundings, browse=nobody)
    with pytest.raises(ZeroDivisionError):
        await all_of(search)


async def test_a_machine_that_does_not_tell_its_networks(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    async def surroundings() -> NetworkNeighbourhood:
        raise ImportError("no netifaces here")

    node = await servers.start(ollama(), HOSTS[0])
    options = SearchOptions.parse(**{**DEFAULTS, "ports": [servers.port]})
    search = Search(options, surroundings=surroundings, browse=nobody)
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


# ---- one machine, one node


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
    assert "is left out: it is a node of this machine" in caplog.text


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


# ---- announcements


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
async def test_zeroconf_that_fails_stops_nobody(
    servers: Servers, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    @asynccontextmanager
    async def failing() -> AsyncIterator[AsyncIterator[News]]:
        raise error
        yield

    caplog.set_level(logging.INFO, "aiosollol")
    node = await servers.start(ollama(), HOSTS[0])
    assert urls(await all_of(searching(ports=[servers.port], browse=failing))) == [node.url]
    assert "announcements cannot be listened to" in caplog.text


async def test_zeroconf_can_be_left_out(servers: Servers) -> None:
    def never() -> Any:
        raise AssertionError

    assert await all_of(searching(ports=[servers.port], browse=never, use_zeroconf=False)) == []


# ---- who may be asked


async def test_allow_narrows_the_search_and_deny_forbids(servers: Servers) -> None:
    one, two, three = [await servers.start(ollama(), host) for host in HOSTS[:3]]
    ports = [servers.port]
    assert urls(await all_of(searching(ports=ports, allow=[HOSTS[0]]))) == [one.url]
    named = {"OLLAMA_HOST": three.url}
    found = await all_of(searching(ports=ports, allow=[HOSTS[0]], environ=named))
    assert urls(found) == [one.url, three.url]  # who is named need not be allowed as well
    found = await all_of(searching(ports=ports, deny=[HOSTS[2]], environ=named))
    assert urls(found) == [one.url, two.url]


@pytest.mark.parametrize("trusted", [[HOSTS[0]], [f"{HOSTS[0]}/32", "10.0.0.0/8"]])
async def test_only_who_is_trusted_is_asked(
    servers: Servers, trusted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    good, evil = [await servers.start(ollama(), host) for host in HOSTS[:2]]
    search = searching(
        ports=[servers.port], trusted=trusted, environ={"OLLAMA_HOST": evil.url}, known=[evil.url]
    )
    assert urls(await all_of(search)) == [good.url]
    assert evil.connections == 0
    assert "left out, because they are not trusted" in caplog.text
    assert f": {evil.url}" in caplog.text
    assert "13 addresses of networks" in caplog.text


async def test_a_trusted_name_is_an_address(servers: Servers) -> None:
    node = await servers.start(ollama(), "127.0.0.1")
    evil = await servers.start(ollama(), HOSTS[0])
    search = searching(ports=[servers.port], trusted=["localhost", "gpu-box.invalid"])
    assert urls(await all_of(search)) == [node.url]
    assert evil.connections == 0


@pytest.mark.usefixtures("loopback_may_announce")
async def test_an_announced_name_is_no_proof(servers: Servers) -> None:
    evil = await servers.start(ollama(), HOSTS[0])
    search = searching(
        trusted=["box.invalid", "localhost"], browse=announcing(heard(evil.url, name="box.invalid"))
    )
    assert await all_of(search) == []
    assert evil.connections == 0


@pytest.mark.parametrize("written", [FINGERPRINT, f"sha256:{FINGERPRINT.upper()}"])
async def test_a_trusted_certificate(servers: Servers, tmp_path: Path, written: str) -> None:
    async def bad_request(peer: Peer) -> None:  # as Go's servers answer a greeting by TLS
        greetings.append(await peer.reader.read(1000))
        await peer.answer(b"Client sent an HTTPS request to an HTTP server.", 400)

    greetings: list[bytes] = []
    await servers.start(bad_request, HOSTS[0])
    await servers.start(ollama(), HOSTS[1], tls=server_tls(tmp_path))
    (found,) = await all_of(searching(ports=[servers.port], trusted=[written]))
    assert found.url == f"https://{HOSTS[1]}:{servers.port}"
    assert found.fingerprint == FINGERPRINT
    assert len(greetings) == 1
    assert b"GET" not in greetings[0]


async def test_a_certificate_that_nobody_listed(
    servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    server = await servers.start(ollama(), HOSTS[0], tls=server_tls(tmp_path))
    search = searching(ports=[servers.port], trusted=["sha256:" + "0" * 64])
    assert await all_of(search) == []
    assert f"sha256:{FINGERPRINT}" in caplog.text
    assert server.heads == []


async def test_https_by_name_needs_a_certificate_that_is_signed(
    servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    server = await servers.start(ollama(), HOSTS[0], tls=server_tls(tmp_path))
    url = f"https://{HOSTS[0]}:{servers.port}"
    given: dict[str, Any] = {"use_scan": False, "environ": {"OLLAMA_HOST": url}}
    assert await all_of(searching(**given)) == []
    assert "self-signed" in caplog.text
    assert server.heads == []
    # Listed by its address, it still has to be signed. Listed by both, the certificate does.
    assert await all_of(searching(**given, trusted=[HOSTS[0]])) == []
    (found,) = await all_of(searching(**given, trusted=[HOSTS[0], FINGERPRINT]))
    assert (found.url, found.fingerprint) == (url, FINGERPRINT)


# ---- arguments


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"timeout": 0}, "above 0"),
        ({"timeout": 61}, "at most 60"),
        ({"timeout": float("nan")}, "number of seconds"),
        ({"timeout": "1"}, "number of seconds"),
        ({"timeout": True}, "number of seconds"),
        ({"ports": []}, "1 to 64"),
        ({"ports": range(1, 66)}, "1 to 64"),
        ({"ports": [0]}, "0 in ports"),
        ({"ports": [65536]}, "65536 in ports"),
        ({"ports": ["11434"]}, "'11434' in ports"),
        ({"subnets": ["10.0.0.0/33"]}, "like 192.168.1.0/24"),
        ({"subnets": "10.0.0.0/24"}, "a list"),
        ({"allow": ["gpu-box"]}, "'gpu-box' in allow"),
        ({"deny": ["10.0.0"]}, "'10.0.0' in deny"),
        ({"known": ["ftp://box"]}, "http or https"),
        ({"trusted": ["http://10.0.0.7:11434"]}, "without scheme and port"),
        ({"trusted": "10.0.0.7"}, "a list"),
        ({"trusted": [""]}, "a host name"),
        ({"trusted": ["10.0.0.999"]}, "is not understood"),
        ({"max_open": 0}, "max_open"),
        ({"max_open": 2.5}, "max_open"),
        ({"max_addresses": True}, "max_addresses"),
        ({"environ": {"OLLAMA_HOST": "ftp://box"}}, "OLLAMA_HOST"),
    ],
)
def test_arguments_are_checked_at_once(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        discover(**given)


def test_a_bad_variable_is_a_bad_configuration() -> None:
    with pytest.raises(ConfigError) as caught:
        discover(environ={"OLLAMA_HOST": "ftp://box"})
    assert caught.value.source == "OLLAMA_HOST"


@pytest.mark.parametrize("text", ["", " ", '""'])
def test_an_empty_variable_names_nobody(text: str) -> None:
    assert discover(environ={"OLLAMA_HOST": text})._options.named is None


def test_nothing_begins_before_it_is_asked_for() -> None:
    """Outside of a loop, even."""
    assert repr(discover(environ={})) == "<Search new, 0 addresses asked>"
