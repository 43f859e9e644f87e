"""A service that runs: its start and end, and its changes of settings and nodes."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiosollol import ConfigError, InvalidInput, PoolClosed
from aiosollol.gateway.middleware.keys import new_key
from aiosollol.service import SOLLOL, ConfigSource, SOLLOLConfig
from aiosollol.service.config import MAX_IN_FLIGHT, NOT_IN_USE
from aiosollol.service.config_changes import ConfigUpdate
from aiosollol.service.running import raise_file_limit, reserve_port
from aiosollol.testing import FakeModel, FakeOllama

pytestmark = pytest.mark.anyio
pytest.importorskip("prometheus_client")


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


@pytest.mark.parametrize("has_keys", [False, True])
async def test_pages_of_this_machine(tmp_path: Path, has_keys: bool) -> None:
    """Allowed as by Ollama, unless the gateway has keys."""
    keys = tmp_path / "keys"
    new = new_key("ann")
    keys.write_text(f"{new.line}\n" if has_keys else "")
    keys.chmod(0o600)
    headers = {"Origin": "http://localhost:3000", "Authorization": f"Bearer {new.token}"}
    async with FakeOllama(models=["all-minilm"]) as node:
        config = config_of(node, api_keys_file=str(keys) if has_keys else None)
        async with (
            SOLLOL(config) as sollol,
            aiohttp.ClientSession(sollol.url, headers=headers) as session,
            session.get("/api/tags") as answer,
        ):
            assert answer.status == (403 if has_keys else 200)
            told = answer.headers.get("Access-Control-Allow-Origin")
            assert told == (None if has_keys else "http://localhost:3000")


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
