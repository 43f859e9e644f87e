"""The lab is a network like others, has no way out, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import uuid
from pathlib import Path

import project_paths
import pytest
from netlab import Host, LabError, NetLab, why_no_lab
from netlab_program import Program

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])).close()
    print("connected")
except OSError as error:
    print(type(error).__name__, error.errno)
"""
CONNECTED = "connected"
REFUSED = "ConnectionRefusedError 111"
SILENT = "TimeoutError None"
PROHIBITED = "OSError 113"
NO_ROUTE = "OSError 101"


async def connect(
    source: Host, target: Host | str, port: int = 11434, *, timeout: float = 10.0
) -> str:
    """How an attempt to connect ended. The timeout is short where silence is expected."""
    address = target if isinstance(target, str) else target.address
    return await source.python(CONNECT, address, str(port), str(timeout))


async def silence(source: Host, target: Host | str, port: int = 11434) -> bool:
    return await connect(source, target, port, timeout=0.3) == SILENT


async def test_hosts_reach_each_other_and_nothing_else(netlab: NetLab) -> None:
    first = await netlab.host("10.77.0.11", "10.77.0.111", "fd77::11")
    second = await netlab.host("10.77.0.12", "fd77::12")
    fake = await first.fake_ollama("--version", "9.8.7")
    assert fake.url == "http://10.77.0.11:11434"
    await first.spawn(sys.executable, "-um", "http.server", "-b", "::", "8080", ready="Serving")

    url = f"{fake.url}/api/version"
    code = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read())"
    assert "9.8.7" in await second.python(code, url)
    assert await connect(first, second) == REFUSED
    assert await connect(second, "10.77.0.111", 8080) == CONNECTED
    assert await connect(second, "fd77::11", 8080) == CONNECTED
    assert await connect(second, "192.0.2.1") == NO_ROUTE  # reserved for documentation
    assert await connect(second, "2001:db8::1") == NO_ROUTE
    assert await silence(second, "10.77.0.99")  # nobody is there


def namespaces() -> list[str]:
    return os.listdir("/run/netns") if os.path.exists("/run/netns") else []


async def test_the_world_outside_does_not_see_it(netlab: NetLab) -> None:
    await netlab.host("10.77.0.11")
    listing = await asyncio.create_subprocess_exec("ip", "-o", "addr", stdout=-1)
    shown, _ = await listing.communicate()
    assert b"10.77.0." not in shown
    assert b"br0" not in shown
    assert not [name for name in namespaces() if name.startswith("host")]


async def test_hosts_are_in_namespaces_of_their_own(netlab: NetLab) -> None:
    read = (
        "import os; print(os.readlink('/proc/self/ns/net'), sorted(os.listdir('/sys/class/net')))"
    )
    first = await (await netlab.host("10.77.0.11")).python(read)
    second = await (await netlab.host("10.77.0.12")).python(read)
    assert "['eth0', 'lo']" in first
    assert len({first.split()[0], second.split()[0], os.readlink("/proc/self/ns/net")}) == 3


async def test_drop_and_reject(netlab: NetLab) -> None:
    node, other = await netlab.host("10.77.0.11", "fd77::11"), await netlab.host("10.77.0.12")
    await node.fake_ollama()
    for _ in range(2):  # twice is as once
        await node.drop()
    assert await silence(other, node)
    assert await silence(other, node, 80)
    await node.drop(port=80)  # in place of the rule before
    assert await connect(other, node) == CONNECTED
    assert await silence(other, node, 80)
    await node.reject()
    assert [await connect(other, node) for _ in range(3)] == [PROHIBITED] * 3
    await node.heal()
    assert await connect(other, node) == CONNECTED
    assert await connect(other, node, 80) == REFUSED


async def test_cut_and_heal(netlab: NetLab) -> None:
    node, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    await node.fake_ollama()
    assert await connect(other, node) == CONNECTED
    await node.cut()
    assert await silence(other, node)
    await node.heal()
    assert await connect(other, node) == CONNECTED


async def test_many_addresses_that_refuse_or_are_silent(netlab: NetLab) -> None:
    node = await netlab.host("10.77.0.11")
    await netlab.refusing(*[f"10.77.0.{n}" for n in range(20, 60)])
    await netlab.silent(*[f"10.77.0.{n}" for n in range(60, 100)])
    assert [await connect(node, f"10.77.0.{n}") for n in (20, 40, 59)] == [REFUSED] * 3
    assert all([await silence(node, f"10.77.0.{n}") for n in (60, 99)])


async def test_delay(netlab: NetLab) -> None:
    node = await netlab.host("10.77.0.11")
    try:
        await node.delay(0.05)
    except LabError as error:
        pytest.skip(str(error).partition(" (")[0])  # the kernel's affair: nothing to install
    other = await netlab.host("10.77.0.12")
    began = time.monotonic()
    assert await connect(other, node) == REFUSED
    assert time.monotonic() - began > 0.05


# ---- programs


async def test_a_program_has_output_a_code_and_a_deadline(netlab: NetLab) -> None:
    node = await netlab.host("10.77.0.11")
    done = await node.run("sh", "-c", "echo out; echo err >&2; pwd; exit 3")
    assert done == (3, f"out\n{os.getcwd()}\n", "err\n")
    with pytest.raises(LabError, match=r"not done within 0\.1 s.*\n*begun"):
        await node.run("sh", "-c", "echo begun; exec sleep 1000", timeout=0.1)
    with pytest.raises(LabError, match="ended without saying 'ready':\nnot me"):
        await node.spawn("sh", "-c", "echo not me >&2", ready="ready")
    with pytest.raises(LabError, match=r"no line with 'ready' within 0\.1 s"):
        await node.spawn("sleep", "1000", ready="ready", timeout=0.1)
    assert (await node.run("sh", "-c", "echo $SOLLOL_MACHINE_ID")).stdout == "lab-host1\n"


async def test_signals_reach_the_program_itself(netlab: NetLab) -> None:
    node = await netlab.host("10.77.0.11")
    code = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    polite = await node.spawn("sh", "-c", code, ready="ready")
    assert await polite.end() == (7, "ready\nbye\n", "")
    assert (await polite.end()).returncode == 7
    deaf = await node.spawn("sh", "-c", "trap '' TERM; echo ready; exec sleep 1000", ready="ready")
    assert (await deaf.end(timeout=0.1)).returncode == -signal.SIGKILL
    killed = await node.spawn("sleep", "1000")
    assert (await killed.kill()).returncode == -signal.SIGKILL


# ---- safety


async def test_only_addresses_of_the_lab(netlab: NetLab) -> None:
    for address in ("192.168.1.7", "10.78.0.1", "127.0.0.1", "2001:db8::1"):
        with pytest.raises(LabError, match="not an address of the lab"):
            await netlab.host(address)
    with pytest.raises(LabError, match="needs an address"):
        await netlab.host()


@pytest.mark.parametrize("way", ["route add default via 10.77.0.1", "link add br1 up type bridge"])
async def test_a_way_out_is_noticed(netlab: NetLab, way: str) -> None:
    node = await netlab.host("10.77.0.11")
    await netlab._verify(node.where, {"lo", "eth0"})
    await netlab.script(f"ip -n {node.name} {way}")
    with pytest.raises(LabError, match="the lab is not closed"):
        await netlab._verify(node.where, {"lo", "eth0"})


async def test_nothing_runs_before_and_after() -> None:
    lab = NetLab()
    with pytest.raises(LabError, match="use 'async with'"):
        await lab.host("10.77.0.11")
    await lab.aclose()


# ---- what is left behind


def living(mark: str) -> list[int]:
    """The processes whose environment has the mark."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            continue  # it ended while we looked
    return found


async def occupy(lab: NetLab, mark: str) -> None:
    """Programs of every kind: on a host, with a child, in a session of its own, deaf, a daemon."""
    node = await lab.host("10.77.0.11")
    code = "trap '' TERM; echo up; sleep 1000 & setsid sleep 1000 & wait"
    await node.spawn("sh", "-c", code, ready="up", env={"MARK": mark})
    await node.run("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &", env={"MARK": mark})
    while len(living(mark)) < 5:  # nsenter, sh, and three that sleep
        await asyncio.sleep(0.01)


@pytest.fixture
def mark(netlab: NetLab) -> str:  # the fixture for its skip
    return f"mark-{uuid.uuid4()}"


async def test_nothing_is_left_after_an_exception(mark: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with NetLab() as lab:
            await occupy(lab, mark)
            raise ZeroDivisionError
    assert living(mark) == []


async def test_nothing_is_left_after_a_cancellation(mark: str) -> None:
    ready = asyncio.Event()

    async def use() -> None:
        async with NetLab() as lab:
            await occupy(lab, mark)
            ready.set()
            await asyncio.sleep(1000)

    task = asyncio.create_task(use())
    await ready.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # while it is cleaning up
    with pytest.raises(asyncio.CancelledError):
        await task
    assert living(mark) == []


async def test_nothing_is_left_after_a_kill(mark: str) -> None:
    code = (
        "import asyncio, sys\n"
        "from netlab import NetLab\n"
        "from test_netlab import occupy\n"
        "async def main():\n"
        "    async with NetLab() as lab:\n"
        "        await occupy(lab, sys.argv[1])\n"
        "        print('occupied', flush=True)\n"
        "        await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(project_paths.SUPPORT), str(project_paths.TESTS))),
        "MARK": mark,
    }
    program = await Program.start(sys.executable, "-c", code, mark, env=environment)
    try:
        await program.line_with("occupied")
        assert len(living(mark)) > 5
        program._process.kill()
        await program.wait()
        async with asyncio.timeout(10):
            while living(mark):
                await asyncio.sleep(0.01)
    finally:
        program._process.kill() if program._process.returncode is None else None


def test_why_no_lab_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert why_no_lab.__wrapped__().startswith("not installed: ip, bridge, unshare, nsenter")
