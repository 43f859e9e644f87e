"""Commands that search and announce, as their users run them, on hosts of the lab."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from netlab import Done, Host, NetLab
from netlab_program import Program

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]

COMMAND = (sys.executable, "-W", "error", "-m", "aiosollol")
ANYWHERE = (sys.executable, "-m", "aiosollol.testing", "--host", "0.0.0.0", "--port")


async def run(host: Host, *args: str, **environment: str) -> Done:
    """A command, which may search: the lab has no way out."""
    # With patience: the machine may be busy.
    searching = {"SOLLOL_AUTO_DISCOVER": "true", "SOLLOL_DISCOVERY_TIMEOUT": "3"}
    env = {**searching, **environment}
    done = await host.run(*COMMAND, *args, env=env, timeout=60.0)
    assert "Traceback" not in done.stderr, done
    return done


async def begin(host: Host, *args: str, ready: str) -> Program:
    return await host.spawn(*COMMAND, *args, ready=ready, env={"SOLLOL_AUTO_DISCOVER": "true"})


async def test_search_save_and_use(netlab: NetLab, tmp_path: Path) -> None:
    node, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    await node.fake_ollama("--version", "0.32.1")
    home = {"HOME": str(tmp_path)}

    found = await run(other, "discover", "--timeout=2", **home)
    assert found.returncode == 0
    first, *rest = found.stdout.splitlines()
    assert first.startswith("http://10.77.0.11:11434: version 0.32.1, found, answers in ")
    assert rest[0].startswith("1 node found; 255 addresses were asked in ")

    # Without a node, a variable or a file, commands search by themselves.
    shown = await run(other, "nodes", **home)
    assert shown.returncode == 0, shown
    assert "No node is named: searching the network" in shown.stderr
    assert "10.77.0.11:11434  yes      0.32.1   found " in shown.stdout

    file = tmp_path / ".config" / "aiosollol" / "nodes.json"
    file.parent.mkdir(parents=True)
    saved = await run(other, "discover", "--timeout=2", "--save", str(file), "--json", **home)
    assert [each["url"] for each in json.loads(saved.stdout)["nodes"]] == [node_url(node)]
    used = await run(other, "nodes", SOLLOL_AUTO_DISCOVER="", **home)
    assert used.stderr == f"Using the nodes in {file}: 10.77.0.11:11434\n"
    assert used.returncode == 0


def node_url(host: Host) -> str:
    return f"http://{host.address}:11434"


async def test_nobody_is_found(netlab: NetLab, tmp_path: Path) -> None:
    host = await netlab.host("10.77.0.11")
    home = {"HOME": str(tmp_path)}
    found = await run(host, "discover", **home)
    assert found.returncode == 1
    assert "No node found; " in found.stdout
    shown = await run(host, "nodes", **home)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "no Ollama server was found on the network" in shown.stderr


async def test_watch_follows_what_is_advertised(netlab: NetLab) -> None:
    node, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    await node.spawn(*ANYWHERE, "12345", ready="listening")
    watch = await begin(other, "discover", "--watch", "--no-scan", ready="Watching for nodes")
    advertised = await begin(
        node, "advertise", "--url", "127.0.0.1:12345", "--name", "box", ready="Announced as 'box'"
    )
    came = await watch.line_with("+ ", after=1)
    assert came.startswith("+ http://10.77.0.11:12345 (box): version ")
    # Known by its announcement alone: on that port it is not searched for.
    shown = await run(other, "nodes", "--json")
    (found,) = json.loads(shown.stdout)["nodes"]
    assert (found["name"], found["found_by"]) == ("box", "zeroconf")
    await advertised.send(signal.SIGINT)
    assert (await advertised.wait()).returncode == 0
    assert await watch.line_with("- ", after=1) == "- http://10.77.0.11:12345: said goodbye"
    await watch.send(signal.SIGINT)
    done = await watch.wait()
    assert (done.returncode, done.stderr) == (0, "")


async def test_an_agent_is_found_and_read(netlab: NetLab) -> None:
    pytest.importorskip("psutil")
    node, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    await node.spawn(*ANYWHERE, "12345", ready="listening")
    given = ("--url=127.0.0.1:12345", "--host=0.0.0.0", "--name=box", "--vram-gb=24")
    agent = await begin(node, "agent", *given, "--gpu-name=A GPU", ready="The agent is at")
    shown = await run(other, "nodes", "--json")
    (found,) = json.loads(shown.stdout)["nodes"]
    assert (found["name"], found["gpu_memory_total"]) == ("box", 24 * 2**30)
    table = (await run(other, "nodes")).stdout
    assert "24.0 of 24.0 GiB free" in table
    await agent.send(signal.SIGTERM)
    assert (await agent.wait()).returncode == 0


@pytest.mark.parametrize("args", [["advertise"], ["agent"]])
async def test_what_others_cannot_reach_is_not_announced(netlab: NetLab, args: list[str]) -> None:
    node = await netlab.host("10.77.0.11")
    await node.spawn(*ANYWHERE[:-3], "--port", "11434", ready="listening")
    done: Any = await run(node, *args)
    assert done.returncode == 2
    assert "start it with OLLAMA_HOST=0.0.0.0" in done.stderr
    assert ("--no-advertise" in done.stderr) is (args == ["agent"])
