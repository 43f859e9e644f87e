"""`NodeRegistry`: adding, finding, checking, locating and keeping nodes."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiosollol import ConfigError, InvalidInput, NodeRegistry, NoNodeAvailable, OllamaPool
from aiosollol.core.locality import THIS_MACHINE, MachineFacts
from aiosollol.core.networks import Discovered
from aiosollol.core.node import NodeSpec
from aiosollol.discovery.search import Arrived, Departed
from aiosollol.net.connector import DnsCache
from aiosollol.testing import FakeModel, FakeTransport, Fault

pytestmark = pytest.mark.anyio

A, B, C = (
    Discovered(f"http://10.0.0.{n}:11434", "0.33.0", ("m:latest",), "scan", 0.001)
    for n in (2, 3, 4)
)


class FakeSearch:
    """A search that finds what it is given, one after another, `finds` times in all."""

    def __init__(self, *found: Discovered) -> None:
        self.found = found
        self.asked: list[dict[str, Any]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, **options: Any) -> AsyncIterator[Discovered]:
        self.asked.append(options)
        for node in self.found:
            yield node
            await self.go_on.wait()


def registry_with(*found: Discovered, **more: Any) -> tuple[NodeRegistry, FakeSearch]:
    search = FakeSearch(*found)
    more.setdefault("transport_factory", fakes())
    return NodeRegistry(search=search, names=DnsCache(no_addresses), **more), search


async def no_addresses(host: str) -> list[str]:
    return []


def fakes(**options: Any) -> Any:
    options.setdefault("models", [FakeModel("m", dim=8)])
    return lambda spec: FakeTransport(spec.name, **options)


# --- one node


async def test_a_node_is_added_and_asked_at_once() -> None:
    registry, _ = registry_with()
    node = await registry.add_node("10.0.0.2", name="gpu", priority=3)
    assert (node.name, node.spec.priority, node.spec.url) == ("gpu", 3, "http://10.0.0.2:11434")
    assert node.state.has_model("m")
    assert registry.nodes == {"http://10.0.0.2:11434": node}
    assert await registry.add_node("http://10.0.0.2:11434", auto_probe=False) is node
    assert registry.get_node_by_url("10.0.0.2") is node
    assert registry.get_node_by_url("10.0.0.3") is None
    assert registry.get_node_by_url("not an address") is None


async def test_a_node_need_not_be_asked_nor_answer() -> None:
    registry, _ = registry_with(transport_factory=lambda spec: refusing(spec.name))
    assert not (await registry.add_node("10.0.0.2", auto_probe=False)).is_known
    assert (await registry.add_node("10.0.0.3")).state.is_down


def refusing(name: str) -> FakeTransport:
    fake = FakeTransport(name, faults_probes=True)
    fake.fault = Fault.REFUSE
    return fake


async def test_a_node_is_removed_by_url_or_name() -> None:
    registry, _ = registry_with()
    for url in ("10.0.0.2", "10.0.0.3"):
        await registry.add_node(url, auto_probe=False)
    registry.remove_node("http://10.0.0.2:11434")
    registry.remove_node("10.0.0.3:11434")
    assert not len(registry)
    with pytest.raises(InvalidInput, match="there is no node"):
        registry.remove_node("10.0.0.2")


async def test_who_is_well_and_who_has_a_gpu() -> None:
    made = {
        "up": FakeTransport("up", models=[FakeModel("m", gpu=True)]),
        "cpu": FakeTransport("cpu"),
        "down": refusing("down"),
    }
    await made["up"].request("POST", "/api/embed", b'{"model":"m","input":[]}', timeout=1)
    registry = NodeRegistry(
        [{"url": f"http://{name}.test", "name": name} for name in made],
        transport_factory=lambda spec: made[spec.name],
    )
    assert registry.get_healthy_nodes() == []
    assert await registry.health_check_all() == {"up": True, "cpu": True, "down": False}
    assert [node.name for node in registry.get_healthy_nodes()] == ["up", "cpu"]
    assert [node.name for node in registry.get_gpu_nodes()] == ["up"]


# --- finding


async def test_what_is_found_is_added_once() -> None:
    registry, search = registry_with(A, B)
    assert await registry.discover_and_add_nodes(timeout=0.25) == 2
    assert list(registry.nodes) == [A.url, B.url]
    assert [node.source for node in registry] == ["scan", "scan"]
    assert search.asked == [{"timeout": 0.25, "known": []}]
    assert await registry.discover_and_add_nodes() == 0
    assert search.asked[1]["known"] == [A.url, B.url]
    assert not registry.is_searching


async def test_what_a_found_node_said_of_itself_is_kept() -> None:
    said = A._replace(
        url="https://10.0.0.2", name="gpu", fingerprint="ab" * 32, agent="http://10.0.0.2:11435"
    )
    registry, _ = registry_with(said, B._replace(name="gpu"))
    await registry.discover_and_add_nodes()
    assert [node.spec for node in registry] == [
        NodeSpec(said.url, "gpu", fingerprint="ab" * 32, agent="http://10.0.0.2:11435"),
        NodeSpec(B.url),  # the name is taken
    ]


async def test_two_addresses_of_one_machine_by_what_they_say() -> None:
    registry, _ = registry_with(A._replace(machine="x"), B._replace(machine="x"), C)
    await registry.discover_and_add_nodes()
    machines = list(registry.machines.values())
    assert machines[0] == machines[1] != machines[2]


async def test_a_pool_is_ready_at_the_first_node_while_the_search_goes_on() -> None:
    registry, search = registry_with(A, B, auto_discover=True)
    search.go_on.clear()
    async with OllamaPool(registry, transport_factory=fakes()) as pool:
        vectors = await pool.embed_batch("m", ["one", "two"])
        assert len(vectors) == 2
        assert registry.is_searching
        assert len(registry) == 1
        search.go_on.set()
        while len(registry) < 2 or registry.is_searching:
            await asyncio.sleep(0)
        assert (await pool.refresh()).having("m") == list(pool.view.nodes.values())


async def test_a_pool_that_finds_nobody_says_what_to_do() -> None:
    registry, _ = registry_with(auto_discover=True)
    async with OllamaPool(registry, transport_factory=fakes()) as pool:
        with pytest.raises(NoNodeAvailable, match=r"OLLAMA_HOST=0\.0\.0\.0"):
            await pool.embed("m", "text")


async def test_a_search_that_is_cancelled_is_over() -> None:
    registry, search = registry_with(A, B)
    search.go_on.clear()
    task = asyncio.create_task(registry.discover_and_add_nodes())
    while not len(registry):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not registry.is_searching


class FakeWatch:
    """A network that is followed: changes are put into it by a test."""

    def __init__(self) -> None:
        self.changes: asyncio.Queue[Any] = asyncio.Queue()
        self.asked: dict[str, Any] = {}
        self.is_open = False

    def __call__(self, **options: Any) -> FakeWatch:
        self.asked = options
        return self

    async def __aenter__(self) -> FakeWatch:
        self.is_open = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.is_open = False

    def __aiter__(self) -> FakeWatch:
        return self

    async def __anext__(self) -> Any:
        return await self.changes.get()


async def test_a_followed_network_adds_and_removes_what_was_found() -> None:
    watch = FakeWatch()
    registry, _ = registry_with(watch=watch)
    registry.add("10.0.0.4")
    task = asyncio.create_task(registry.watch(interval=5.0, timeout=0.25))
    for change in (Arrived(A), Arrived(C), Departed(A, "said goodbye"), Arrived(B)):
        watch.changes.put_nowait(change)
    while B.url not in registry.nodes:
        await asyncio.sleep(0)
    assert list(registry.nodes) == [C.url, B.url]
    watch.changes.put_nowait(Departed(C, "did not answer"))  # somebody named it
    watch.changes.put_nowait(Departed(B, "said goodbye"))
    while B.url in registry.nodes:
        await asyncio.sleep(0)
    assert list(registry.nodes) == [C.url]
    assert watch.asked == {"interval": 5.0, "known": [C.url], "timeout": 0.25}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not watch.is_open


async def test_a_running_pool_follows_the_network() -> None:
    watch = FakeWatch()
    registry, _ = registry_with(A, watch=watch, auto_discover=True)
    async with OllamaPool(registry, transport_factory=fakes(), watch_network=True) as pool:
        await pool.embed("m", "text")
        watch.changes.put_nowait(Arrived(B))
        while B.url not in registry.nodes:
            await asyncio.sleep(0)
        await pool.refresh()
        assert pool.count_unique_physical_hosts() == 2
        watch.changes.put_nowait(Departed(A, "said goodbye"))
        while A.url in registry.nodes:
            await asyncio.sleep(0)
        await pool.embed("m", "another")
        assert list(pool.get_stats()["nodes_used"]) == ["10.0.0.3:11434"]
    assert not watch.is_open


# --- where they are


async def test_names_are_resolved_and_duplicates_folded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def lookup(host: str) -> list[str]:
        return {"gpu.lan": ["10.0.0.3"], "gone.lan": []}[host]

    registry = NodeRegistry(["10.0.0.3", "gpu.lan", "gone.lan"], names=DnsCache(lookup))
    await registry.locate()
    assert [node.name for node in registry] == ["10.0.0.3:11434", "gone.lan:11434"]
    assert "are one server" in caplog.text


async def test_loopback_alone_asks_nobody() -> None:
    async def lookup(host: str) -> list[str]:
        raise AssertionError(host)

    registry = NodeRegistry(["127.0.0.1:1", "localhost:2"], names=DnsCache(lookup))
    await registry.locate()
    assert registry.facts == MachineFacts()
    assert set(registry.machines.values()) == {THIS_MACHINE}


async def test_a_name_server_that_fails_or_hangs_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiosollol.net.connector._TIMEOUT_SECONDS", 0.01)
    asked = []

    async def lookup(host: str) -> list[str]:
        asked.append(host)
        if host == "hang":
            await asyncio.sleep(3600)
        if host == "fail":
            raise OSError("no such host")
        return ["10.0.0.2"]

    names = DnsCache(lookup)
    assert await names.resolve(["hang", "fail", "good", "good"]) == {"good": {"10.0.0.2"}}
    await names.resolve(["good"])
    assert asked.count("good") == 1


# --- keeping


def test_nodes_are_saved_and_loaded(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "nodes.json"
    registry = NodeRegistry([{"url": "10.0.0.2", "name": "gpu", "priority": 2}, "10.0.0.3"])
    registry.save_config(path)
    other = NodeRegistry(["10.0.0.3"])
    assert other.load_config(path) == 1
    assert {node.spec for node in other} == {node.spec for node in registry}


def test_the_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ConfigError):
        NodeRegistry().load_config()
    NodeRegistry(["10.0.0.2"]).save_config()
    assert (tmp_path / "aiosollol" / "nodes.json").exists()
    again = NodeRegistry()
    assert again.load_config() == 1
