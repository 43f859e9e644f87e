"""`aiosollol advertise`, as its users run it, on hosts of the lab."""

from __future__ import annotations

import json
import re
import signal
import sys
from typing import Any

import pytest
from mdns_lab import start
from netlab import Host, NetLab
from netlab_program import Program

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]

ADVERTISE = """
import sys
from aiosollol.cli import advertise
from aiosollol.errors import SollolError
advertise.BEAT_SECONDS = 0.05
url, *addresses = sys.argv[1:]
options = advertise.AdvertiseOptions(
    url or None, name="box", addresses=addresses, gpu_name="A GPU", vram_gb=16
)
try:
    sys.exit(advertise.run_advertise(options))
except SollolError as error:
    print(f"{type(error).__name__}: {error}")
"""
ANYWHERE = (sys.executable, "-m", "aiosollol.testing", "--port", "11434", "--host", "0.0.0.0")


async def advertise(node: Host, url: str = "", *addresses: str) -> Program:
    environment = {"SOLLOL_MACHINE_ID": "left", "PYTHONWARNINGS": "error"}
    return await node.spawn(sys.executable, "-c", ADVERTISE, url, *addresses, env=environment)


async def heard(listener: Program, text: str, after: int = 0) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(await listener.line_with(text, after=after))
    return line


async def test_it_is_announced_until_the_end(netlab: NetLab) -> None:
    node, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    await node.spawn(*ANYWHERE, "--version", "0.32.1", ready="listening")
    listener = await start(other, "listen", ready="listening")
    program = await advertise(node)  # at 127.0.0.1, of which others must not be told
    first = await heard(listener, "heard")
    assert first["urls"] == ["http://10.77.0.11:11434"]
    assert (first["name"], first["version"], first["machine"]) == ("box", "0.32.1", "left")
    assert (first["gpu"], first["gpu_memory"], first["agent"]) == ("A GPU", 2**34, 0)
    greeting = await program.line_with("Announced")
    assert greeting == (
        "Announced as 'box': Ollama 0.32.1 at 10.77.0.11 port 11434; Ctrl-C ends it."
    )
    await program.send(signal.SIGINT)
    assert await program.wait() == (0, f"{greeting}\nThe node is no longer announced.\n", "")
    await listener.line_with("gone")


async def test_it_follows_the_node(netlab: NetLab) -> None:
    node, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    fake = await node.fake_ollama("--version", "0.32.1")
    listener = await start(other, "listen", ready="listening")
    program = await advertise(node, "http://10.77.0.11:11434")
    await listener.line_with("0.32.1")
    await program.line_with("Announced")
    await fake.end()
    await listener.line_with("gone")
    assert "10.77.0.11" in await program.line_with("No longer announced until the node recovers")
    await node.fake_ollama("--version", "0.33.0")
    assert (await heard(listener, "0.33.0"))["urls"] == ["http://10.77.0.11:11434"]
    assert (await program.end()).returncode == 0


async def test_it_follows_the_addresses_of_the_machine(netlab: NetLab) -> None:
    node, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    await node.spawn(*ANYWHERE, ready="listening")
    listener = await start(other, "listen", ready="listening")
    await advertise(node)
    await listener.line_with("10.77.0.11")
    for change in (("del", "10.77.0.11/24"), ("add", "10.77.0.21/24")):
        assert (await node.run("ip", "address", *change, "dev", "eth0")).returncode == 0
    assert (await heard(listener, "10.77.0.21"))["urls"] == ["http://10.77.0.21:11434"]


async def test_a_node_on_another_machine(netlab: NetLab) -> None:
    """It is announced under the address that is given, and without what is known of this one."""
    node, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    await node.fake_ollama()
    listener = await start(other, "listen", ready="listening")
    await advertise(other, "http://10.77.0.11:11434", "10.77.0.11")
    found = await heard(listener, "heard")
    assert found["urls"] == ["http://10.77.0.11:11434"]
    assert (found["machine"], found["gpu"]) == ("", "")


@pytest.mark.parametrize(
    ("host", "problem"),
    [("127.0.0.1", "InvalidInput: .*OLLAMA_HOST=0.0.0.0"), ("", "NodeUnreachable: .*refused")],
)
async def test_what_cannot_be_announced(netlab: NetLab, host: str, problem: str) -> None:
    node = await netlab.host("10.77.0.11")
    if host:
        await node.spawn(*ANYWHERE[:-1], host, ready="listening")
    done = await (await advertise(node)).wait()
    assert done.returncode == 0, done.stderr
    assert re.match(problem, done.stdout), done
