"""Pools on real hosts: they find their nodes, follow them, and know which are one machine."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import project_paths
import pytest
from netlab import Host, NetLab

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]

PROGRAM = str(project_paths.SUPPORT / "pool_program.py")
MDNS = str(project_paths.SUPPORT / "mdns_program.py")
DISCOVERS = {"SOLLOL_AUTO_DISCOVER": ""}


async def said(host: Host, *command: str) -> dict[str, Any]:
    done = await host.run(sys.executable, PROGRAM, *command, timeout=30, env=DISCOVERS)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


async def test_a_running_pool_follows_announcements_alone(netlab: NetLab) -> None:
    user, node = await netlab.host("10.77.0.2"), await netlab.host("10.77.0.11")
    await node.fake_ollama("--model", "m", port=4321)  # a port that no search asks
    pool = await user.spawn(
        sys.executable, PROGRAM, "follow", ready='"nodes": []', timeout=30, env=DISCOVERS
    )
    announcer = await node.spawn(
        *(sys.executable, MDNS, "advertise", "http://10.77.0.11:4321", "box"),
        ready="announced",
        timeout=20,
        env={"HOME_NAMESPACE": os.readlink("/proc/self/ns/net")},
    )
    line = await pool.line_with('"m:latest"', timeout=20)
    assert json.loads(line)["nodes"] == ["http://10.77.0.11:4321"]
    heard = pool.stdout().count("\n")
    await announcer.send(signal.SIGTERM)
    await announcer.line_with("ended", timeout=20)
    await pool.line_with('"nodes": []', timeout=20, after=heard)


async def test_a_pool_without_nodes_finds_two_machines_and_uses_both(netlab: NetLab) -> None:
    user = await netlab.host("10.77.0.2")
    for address in ("10.77.0.11", "10.77.0.12"):
        node = await netlab.host(address)
        await node.fake_ollama("--seconds-per-item", "0.002", port=11434)
    result = await said(user, "find", "400")
    urls = ["http://10.77.0.11:11434", "http://10.77.0.12:11434"]
    assert result["nodes"] == urls
    assert result["machines"] == 2
    assert result["used"] == ["10.77.0.11:11434", "10.77.0.12:11434"]
    assert result["count"] == 400


async def test_localhost_and_the_real_address_are_one_node_on_one_machine(netlab: NetLab) -> None:
    host, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    assert await said(host, "count", "localhost", "10.77.0.11", "127.0.0.1") == {
        "nodes": ["http://10.77.0.11:11434"],
        "machines": 1,
    }
    assert await said(host, "count", "10.77.0.11:1", "127.0.0.1:2", "10.77.0.12") == {
        "nodes": ["http://10.77.0.11:1", "http://10.77.0.12:11434", "http://127.0.0.1:2"],
        "machines": 2,
    }
    assert (await said(other, "count", "10.77.0.11", "127.0.0.1"))["machines"] == 2


async def test_a_pool_on_a_host_with_an_ollama_counts_it_once(netlab: NetLab) -> None:
    host = await netlab.host("10.77.0.11")
    await host.fake_ollama(port=11434)
    result = await said(host, "find", "10")
    assert len(result["nodes"]) == 1
    assert result["machines"] == 1
