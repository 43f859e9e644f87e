"""A service: its settings, its life, what changes while it runs, and what it tells of itself."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import project_paths
import pytest

from aiosollol import ConfigError, InvalidInput, NodeSpec, PoolClosed
from aiosollol.gateway.middleware.keys import new_key
from aiosollol.service import SOLLOL, ConfigSource, SOLLOLConfig
from aiosollol.service.config import MAX_IN_FLIGHT, NOT_IN_USE, ConfigUpdate, compare
from aiosollol.service.parts import queue_path
from aiosollol.service.running import raise_file_limit, reserve_port
from aiosollol.service.security import check_bind, nodes_of, read_keys
from aiosollol.testing import FakeModel, FakeOllama

pytestmark = pytest.mark.anyio

pytest.importorskip("prometheus_client")

# The original's, by its documentation and its package.
ORIGINAL = {
    "ray_workers": 2,
    "dask_workers": 2,
    "dask_scheduler": None,
    "hosts": ("127.0.0.1:11434",),
    "gateway_port": 8000,
    "routing_strategy": "performance",
    "autobatch_enabled": True,
    "autobatch_interval": 60,
    "autobatch_min_batch_size": 1,
    "autobatch_max_batch_size": 100,
    "metrics_enabled": True,
    "metrics_port": 9090,
    "adaptive_metrics_enabled": True,
    "adaptive_metrics_interval": 30,
    "health_check_enabled": True,
    "health_check_interval": 120,
    "max_retries": 3,
    "retry_backoff_multiplier": 0.5,
    "chat_timeout": 300.0,
    "embedding_timeout": 60.0,
}


def test_the_fields_and_defaults_of_the_original() -> None:
    config = SOLLOLConfig()
    assert {name: getattr(config, name) for name in ORIGINAL} == ORIGINAL
    assert config.gateway_host == "127.0.0.1"  # the original listens on every interface


def test_a_config_is_frozen_and_can_be_pickled() -> None:
    config = SOLLOLConfig(hosts=["10.0.0.2"], pool={"policy": "rules"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gateway_port = 1  # type: ignore[misc]
    assert config.hosts == ("10.0.0.2",)
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, gateway_port=1).hosts == ("10.0.0.2",)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ray_workers", -1, "a whole number"),
        ("dask_workers", 1.5, "a whole number"),
        ("dask_scheduler", "10.0.0.1", "an address such as"),
        ("hosts", "10.0.0.2", "a list of at least one node"),
        ("hosts", [], "a list of at least one node"),
        ("hosts", ["http://"], "hosts: "),
        ("gateway_port", 70000, "a port"),
        ("gateway_host", "", "an address or a host name"),
        ("routing_strategy", "fastest", "one of 'performance'"),
        ("autobatch_enabled", "yes", "true or false"),
        ("autobatch_interval", -1, "a number of seconds"),
        ("autobatch_min_batch_size", 0, "a whole number of at least 1"),
        ("autobatch_min_batch_size", 1000, "at most autobatch_max_batch_size"),
        ("chat_timeout", 0, "a number of seconds"),
        ("processes", 0, "from 1 to 256"),
        ("api_keys_file", 3, "a path"),
        ("cors_origins", "*", "a list of origins"),
        ("rate_limit", -1, "requests a second"),
        ("max_in_flight", 0, "a whole number of at least 1"),
        ("wait_timeout", -1, "a number of seconds"),
        ("full_timeout", 0, "a number of seconds"),
        ("pool", {"wait_timeout": 3}, "a setting of the service"),
        ("max_body", None, "a whole number of at least 1"),
        ("pool", {"polcy": "rules"}, "did you mean 'policy'"),
        ("pool", {"policy": "best"}, "policy must be one of"),
        ("pool", {"embed_timeout": 3}, "a setting of the service"),
    ],
)
def test_settings_that_cannot_be(name: str, value: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        SOLLOLConfig(**{name: value})
    assert caught.value.source == "argument"


def test_what_the_pool_is_made_with() -> None:
    config = SOLLOLConfig(
        embedding_timeout=7, adaptive_metrics_enabled=False, pool={"policy": "rules"}
    )
    settings = config.pool_settings()
    assert settings["wait_timeout"] == 300  # longer than a program's own calls would
    assert (settings["embed_timeout"], settings["policy"]) == (7, "rules")
    assert settings["metrics_interval"] > 10**8
    assert settings["check_interval"] == 120
    assert settings["enable_dask"] is False


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"enable_dask": True}, (True, None, 2)),
        ({"enable_dask": True, "dask_workers": 4}, (True, None, 4)),
        ({"dask_scheduler": "tcp://10.0.0.2:8786"}, (True, "tcp://10.0.0.2:8786", 2)),
        ({"dask_workers": 4}, (False, None, 4)),
    ],
)
def test_dask_is_for_those_who_ask_for_it(
    given: dict[str, Any], settings: tuple[bool, str | None, int]
) -> None:
    made = SOLLOLConfig(**given).pool_settings()
    assert (made["enable_dask"], made["dask_address"], made["dask_workers"]) == settings


# Files.

TOML = """
hosts = ["10.0.0.2", "10.0.0.3:8080"]
gateway_port = 8001

[pool]
policy = "rules"
"""


def test_a_file_and_what_counts_more(tmp_path: Path) -> None:
    file, hosts = tmp_path / "gateway.toml", tmp_path / "hosts.txt"
    file.write_text(TOML)
    hosts.write_text("10.0.0.9\n")
    read = ConfigSource(path=str(file), given={"gateway_port": 8002}).read()
    assert (read.hosts, read.gateway_port) == (("10.0.0.2", "10.0.0.3:8080"), 8002)
    assert read.pool == {"policy": "rules"}
    source = ConfigSource(path=str(file), hosts_file=str(hosts))
    assert source.read().hosts == (NodeSpec("10.0.0.9"),)
    assert ConfigSource().read() == SOLLOLConfig()
    assert ConfigSource(begins_as_pool=True).read().hosts is None


def test_a_source_on_its_way_to_a_child(tmp_path: Path) -> None:
    spec = NodeSpec("http://10.0.0.2:1", headers={"X": "y"}, priority=2)
    source = ConfigSource(
        path=None, given={"hosts": (spec, "10.0.0.3"), "pool": {"policy": "rules"}}
    )
    again = ConfigSource(**json.loads(json.dumps(source.as_data()))).read()
    assert nodes_of(again) == nodes_of(source.read())


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("gateway_prot = 1", "unknown setting 'gateway_prot'; did you mean 'gateway_port'?", 1),
        ("\ngateway_port = 'x'", "gateway_port must be a port", 2),
        ("a = \n", "not TOML", 1),
        ("\n[pool]\npolicy = 'x'", "policy must be one of", 2),
        ("hosts = ['http://']", "hosts: ", 1),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, problem: str, line: int) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem.replace("?", r"\?")) as caught:
        ConfigSource(path=str(file)).read()
    assert (caught.value.source, caught.value.line) == (str(file), line)


def test_where_the_queue_is(tmp_path: Path) -> None:
    assert queue_path(SOLLOLConfig(autobatch_path="q.db")) == "q.db"
    path = queue_path(SOLLOLConfig(), {"XDG_STATE_HOME": str(tmp_path)})
    assert path == str(tmp_path / "aiosollol" / "autobatch.db")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="autobatch_path"):
        queue_path(SOLLOLConfig(), {"XDG_STATE_HOME": str(file)})


# Keys and addresses.


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gateway.lan"])
def test_no_public_address_without_keys(host: str) -> None:
    config = SOLLOLConfig(gateway_host=host)
    with pytest.raises(ConfigError, match="there are no API keys"):
        check_bind(config, read_keys(config, {}))
    insecure = dataclasses.replace(config, insecure=True)
    check_bind(insecure, read_keys(insecure, {}))
    check_bind(config, read_keys(config, {"SOLLOL_API_KEYS": new_key("x").token}))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_bind(SOLLOLConfig(gateway_host=host, allow_admin=True), read_keys(SOLLOLConfig(), {}))


def test_admin_takes_a_key_of_its_own(tmp_path: Path) -> None:
    plain, admin = new_key("ann"), new_key("ops", "admin")
    config = SOLLOLConfig(allow_admin=True)
    with pytest.raises(ConfigError, match="needs an admin key"):
        check_bind(config, read_keys(config, {"SOLLOL_API_KEYS": plain.token}))
    check_bind(config, read_keys(config, {"SOLLOL_ADMIN_KEYS": admin.token}))
    file = tmp_path / "keys.txt"
    file.write_text(f"{plain.line}\n{admin.line}\n")
    ring = read_keys(SOLLOLConfig(api_keys_file=str(file)), {})
    assert [key.name for key in ring] == ["ann", "ops"]


def test_a_file_of_keys_that_is_missing(tmp_path: Path) -> None:
    config = SOLLOLConfig(api_keys_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no such file; make one with: aiosollol key"):
        read_keys(config, {})


def test_the_order_of_hosts_is_their_priority() -> None:
    config = SOLLOLConfig(hosts=["10.0.0.2", "10.0.0.3"], routing_strategy="priority")
    assert [spec.priority for spec in nodes_of(config) or ()] == [0, 1]
    own = dataclasses.replace(config, hosts=[{"url": "10.0.0.2", "priority": 5}, "10.0.0.3"])
    assert [spec.priority for spec in nodes_of(own) or ()] == [5, 0]


# Changes.


def test_what_a_change_takes() -> None:
    old = SOLLOLConfig(hosts=["10.0.0.2"])
    new = dataclasses.replace(
        old, hosts=["10.0.0.3"], autobatch_interval=5, gateway_port=1, ray_workers=6
    )
    update = compare(old, new)
    assert update == ConfigUpdate(
        ("hosts", "autobatch_interval"), ("gateway_port",), ("ray_workers",)
    )
    assert str(update) == (
        "applied: hosts, autobatch_interval; after a restart: gateway_port; not in use: ray_workers"
    )
    assert str(compare(old, old)) == "nothing has changed"
    assert compare(old, dataclasses.replace(old, hosts=None)).needs_restart == ("hosts",)
    admin = dataclasses.replace(old, allow_admin=True)
    assert compare(old, admin).needs_restart == ("allow_admin",)
    assert compare(admin, old).applied == ("allow_admin",)


# A service that runs.


def config_of(*nodes: FakeOllama, **more: Any) -> SOLLOLConfig:
    settings: dict[str, Any] = {
        "hosts": [node.url for node in nodes],
        "gateway_port": 0,
        "metrics_port": 0,
        "autobatch_enabled": False,
        "stop_timeout": 5,
    }
    return SOLLOLConfig(**{**settings, **more})


async def embed(sollol: SOLLOL, **headers: str) -> int:
    body = {"model": "all-minilm", "input": "a text"}
    async with (
        aiohttp.ClientSession(sollol.url, headers=headers) as session,
        session.post("/api/embed", json=body) as answer,
    ):
        await answer.read()
        return answer.status


async def text_of(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


async def test_it_starts_serves_and_stops() -> None:
    async with FakeOllama(models=["all-minilm"]) as node:
        sollol = SOLLOL(config_of(node))
        assert repr(sollol) == "<SOLLOL stopped>"
        assert sollol.get_stats() == sollol.get_health() == {"error": "SOLLOL is not running"}
        assert sollol.get_status()["running"] is False
        for _ in range(2):  # and once more
            async with sollol:
                assert repr(sollol) == f"<SOLLOL at {sollol.url}>"
                assert await embed(sollol) == 200
                assert sollol.metrics_url is not None
                text = await text_of(sollol.metrics_url)
                assert 'sollol_requests_total{endpoint="embed",status="success"} 1.0' in text
                assert "sollol_active_requests 1.0" in await text_of(f"{sollol.url}/metrics")
                status = sollol.get_status()
                assert status["running"] is True
                assert status["endpoints"]["gateway"] == sollol.url
                assert status["ollama_nodes"] == 1
                assert sollol.get_health()["status"] == "healthy"
                (host,) = sollol.get_stats()["hosts"]
                assert host["host"] == node.url.removeprefix("http://")
                assert set(host) >= {"available", "latency_ms", "success_rate", "last_updated"}
                await sollol.start()  # nothing happens
            await sollol.stop()  # nor here
        with pytest.raises(PoolClosed):
            _ = sollol.url


async def test_queued_documents(tmp_path: Path) -> None:
    async with FakeOllama(models=["all-minilm"]) as node:
        config = config_of(node, autobatch_enabled=True, autobatch_path=str(tmp_path / "queue.db"))
        async with SOLLOL(config) as sollol, aiohttp.ClientSession(sollol.url) as session:
            body = {"model": "all-minilm", "docs": ["one", "two"]}
            async with session.post("/api/embed/batch", json=body) as answer:
                assert answer.status == 202
            async with session.get("/metrics") as answer:
                assert "sollol_autobatch_queued " in await answer.text()
            update = await sollol.update_config(autobatch_interval=5, autobatch_max_batch_size=50)
            assert update.applied == ("autobatch_interval", "autobatch_max_batch_size")


async def test_nodes_change_while_it_runs() -> None:
    async with (
        FakeOllama(models=["all-minilm"]) as one,
        FakeOllama(models=["all-minilm"]) as two,
        SOLLOL(config_of(one)) as sollol,
    ):
        assert await embed(sollol) == 200
        update = await sollol.update_config(hosts=[two.url])
        assert update == ConfigUpdate(("hosts",))
        assert await embed(sollol) == 200
        await until_nodes(sollol, two.url)
        # Described anew, and a name that goes over to another.
        await sollol.update_config(hosts=[{"url": two.url, "name": "gpu1"}])
        await until_nodes(sollol, two.url, name="gpu1")
        await sollol.update_config(hosts=[{"url": one.url, "name": "gpu1"}])
        await until_nodes(sollol, one.url, name="gpu1")
        assert await embed(sollol) == 200


async def until_nodes(sollol: SOLLOL, *urls: str, name: str = "") -> None:
    """Wait until the pool has these nodes and no others."""
    keys = [url.removeprefix("http://") for url in urls]
    async with asyncio.timeout(30):
        while True:
            found = sollol.get_stats()["node_performance"]
            if list(found) == keys and (not name or found[keys[0]]["name"] == name):
                return
            await asyncio.sleep(0)


async def test_a_node_that_leaves_finishes_its_stream() -> None:
    models = [FakeModel("llama3.2", kind="chat")]
    async with (
        FakeOllama(models=models, seconds_per_chat_token=0.02) as one,
        FakeOllama(models=models) as two,
        SOLLOL(config_of(one)) as sollol,
        aiohttp.ClientSession(sollol.url) as session,
    ):
        body = {"model": "llama3.2", "messages": [{"role": "user", "content": "one two three"}]}
        async with session.post("/api/chat", json=body) as answer:
            parts = [json.loads(await answer.content.readline())]
            await sollol.update_config(hosts=[two.url])
            parts += [json.loads(line) async for line in answer.content]
            assert parts[-1]["done"] is True
        await until_nodes(sollol, two.url)


async def test_a_node_that_was_to_leave_may_stay() -> None:
    models = [FakeModel("llama3.2", kind="chat")]
    async with (
        FakeOllama(models=models, seconds_per_chat_token=0.02) as one,
        SOLLOL(config_of(one)) as sollol,
        FakeOllama(models=models) as two,
        aiohttp.ClientSession(sollol.url) as session,
    ):
        body = {"model": "llama3.2", "messages": [{"role": "user", "content": "one two three"}]}
        async with session.post("/api/chat", json=body) as answer:
            await answer.content.readline()
            await sollol.update_config(hosts=[two.url])
            await sollol.update_config(hosts=[one.url])
            await answer.read()
        await until_nodes(sollol, one.url)
        assert sollol.get_health()["status"] == "healthy"


async def test_keys_and_limits_change_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = new_key("ann"), new_key("bob")
    file = tmp_path / "keys.txt"
    file.write_text(first.line)
    async with FakeOllama(models=["all-minilm"]) as node:
        source = ConfigSource(given=vars(config_of(node, api_keys_file=str(file))))
        async with SOLLOL(source.read(), source=source) as sollol:
            assert await embed(sollol) == 401
            assert await embed(sollol, Authorization=f"Bearer {first.token}") == 200
            file.write_text(second.line)
            assert await sollol.reload() == ConfigUpdate()  # the keys are read all the same
            assert await embed(sollol, Authorization=f"Bearer {first.token}") == 401
            assert await embed(sollol, Authorization=f"Bearer {second.token}") == 200
            file.write_text("rubbish")
            with pytest.raises(ConfigError):
                await sollol.reload()
            assert await embed(sollol, Authorization=f"Bearer {second.token}") == 200
            file.write_text(second.line)
            await sollol.update_config(rate_limit=0.001, rate_burst=1)
            assert await embed(sollol, Authorization=f"Bearer {second.token}") in (200, 429)
            assert await embed(sollol, Authorization=f"Bearer {second.token}") == 429


async def test_the_limit_of_a_client_follows_the_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(new_key("ann").line)
    async with (
        FakeOllama(models=["all-minilm"]) as node,
        SOLLOL(config_of(node, max_body=5)) as sollol,
    ):
        limiter = sollol._parts().guard.limiter
        assert limiter.limits.max_in_flight is None
        await sollol.update_config(api_keys_file=str(file), wait_timeout=7)
        assert limiter.limits.max_in_flight == MAX_IN_FLIGHT
        # What holds after a restart, in the pool too.
        assert (limiter.limits.wait_timeout, limiter.limits.max_body) == (300.0, 5)
        await sollol.update_config(max_in_flight=3)
        assert limiter.limits.max_in_flight == 3
        # It still listens on loopback, whatever it is to do after a restart.
        await sollol.update_config(
            api_keys_file=None, max_in_flight=None, gateway_host="0.0.0.0", insecure=True
        )
        assert limiter.limits.max_in_flight is None


@pytest.mark.parametrize(
    ("soft", "hard", "most", "wanted", "gets"),
    [
        (1024, 20_000, 20_000, 17_000, 17_000),
        (1024, 4096, 4096, 17_000, 4096),
        (1024, resource.RLIM_INFINITY, 10**9, 17_000, 17_000),
        (256, resource.RLIM_INFINITY, 10_240, 17_000, 8500),  # macOS does not tell its limit
        (256, resource.RLIM_INFINITY, 256, 17_000, 256),
        (20_000, 20_000, 20_000, 17_000, 20_000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 10**9, 17_000, resource.RLIM_INFINITY),
    ],
)
def test_the_limit_of_files_is_raised_as_far_as_it_goes(
    soft: int, hard: int, most: int, wanted: int, gets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(soft, hard)]

    def set_limit(kind: int, limit: tuple[int, int]) -> None:
        if limit[0] > most:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(limit)

    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    raise_file_limit(wanted)
    assert limits[-1] == (gets, hard)


async def test_what_cannot_change_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeOllama(models=["all-minilm"]) as node:
        async with SOLLOL(config_of(node)) as sollol:
            with caplog.at_level(logging.WARNING, "aiosollol"):
                update = await sollol.update_config(chat_timeout=5, ray_workers=7)
            assert update == ConfigUpdate((), ("chat_timeout",), ("ray_workers",))
            assert "settings that apply after a restart: chat_timeout" in caplog.text
            with pytest.raises(InvalidInput, match="unknown setting 'colour'"):
                await sollol.update_config(colour="red")
            with pytest.raises(ConfigError):
                await sollol.update_config(gateway_port=-1)
        update = await sollol.update_config(chat_timeout=6)
        assert update == ConfigUpdate(("chat_timeout",))


async def test_what_is_not_in_use_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeOllama() as node:
        sollol = SOLLOL(config_of(node, ray_workers=4, retry_backoff_multiplier=2))
        with caplog.at_level(logging.WARNING, "aiosollol"):
            for _ in range(2):
                async with sollol:
                    assert sollol.get_status()["not_in_use"] == list(NOT_IN_USE)
        told = [line for line in caplog.messages if "no effect yet" in line]
        assert told == ["settings that have no effect yet: ray_workers, retry_backoff_multiplier"]


async def test_what_keeps_it_from_starting_leaves_nothing_open(tmp_path: Path) -> None:
    async with FakeOllama() as node, SOLLOL(config_of(node)) as first:
        port = int(first.url.rsplit(":", 1)[1])
        taken = SOLLOL(config_of(node, gateway_port=port))
        with pytest.raises(InvalidInput, match=f"cannot listen on 127.0.0.1 port {port}") as caught:
            await taken.start()
        assert "another port: --port (gateway_port)" in str(caught.value)
        assert not taken.is_running
        elsewhere = SOLLOL(config_of(node, gateway_host="203.0.113.7", insecure=True))
        with pytest.raises(InvalidInput, match="an address of this machine: --host"):
            await elsewhere.start()
        public = SOLLOL(config_of(node, gateway_host="0.0.0.0"))
        with pytest.raises(ConfigError, match="there are no API keys"):
            await public.start()
        several = SOLLOL(config_of(node, processes=2))
        with pytest.raises(InvalidInput, match="one process"):
            await several.start()
        assert await embed(first) in (200, 404)


async def test_a_reload_without_a_source_reads_the_keys() -> None:
    async with FakeOllama() as node, SOLLOL(config_of(node)) as sollol:
        assert await sollol.reload() == ConfigUpdate()


async def test_a_port_is_held_for_our_processes_alone() -> None:
    held = await asyncio.to_thread(reserve_port, "127.0.0.1", 0)
    port = held.getsockname()[1]
    held.listen()  # as the processes do that share it
    try:
        with pytest.raises(InvalidInput, match=r"another port: --port \(gateway_port\)"):
            await asyncio.to_thread(reserve_port, "127.0.0.1", port)
    finally:
        held.close()
    for host in ("203.0.113.7", "nowhere.invalid"):
        with pytest.raises(InvalidInput, match=r"this machine: --host \(gateway_host\)"):
            await asyncio.to_thread(reserve_port, host, 0)


def test_the_settings_load_no_server() -> None:
    code = (
        "import sys, aiosollol.service\n"
        "aiosollol.service.SOLLOL(aiosollol.service.SOLLOLConfig())\n"
        "heavy = {'aiohttp.web', 'prometheus_client', 'uvloop', 'sqlite3'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


# What is written of it.

ROOT = project_paths.ROOT


def test_the_documents_have_every_setting() -> None:
    text = (ROOT / "docs" / "service.md").read_text().split("## Security")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", text, re.MULTILINE))
    config = SOLLOLConfig()
    assert set(table) == {each.name for each in dataclasses.fields(config)}
    for name, shown in table.items():
        value = getattr(config, name)
        value = list(value) if isinstance(value, tuple) else value
        assert json.loads(shown.replace("none", "null")) == value, name


def test_the_settings_that_are_shown_can_be_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "service.md").read_text()
    file = tmp_path / "gateway.toml"
    file.write_text(text.split("```toml\n")[1].split("```")[0])
    config = ConfigSource(path=str(file)).read()
    assert (config.processes, config.pool_settings()["hedge_rate"]) == (2, 0.02)
    example = ConfigSource(path=str(ROOT / "examples" / "docker" / "gateway.toml")).read()
    check_bind(example, read_keys(example, {"SOLLOL_API_KEYS": new_key("x").token}))


def test_the_containers_hang_together() -> None:
    yaml = pytest.importorskip("yaml")
    folder = ROOT / "examples" / "docker"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    example = ConfigSource(path=str(folder / "gateway.toml")).read()
    hosts = [spec.address.host for spec in nodes_of(example) or ()]
    assert [name for name in services if name.startswith("ollama")] == hosts
    scraped = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped[0]["static_configs"][0]["targets"] == [f"gateway:{example.metrics_port}"]
