"""Announcements between real hosts: heard at once, followed, taken back; junk is passed over."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from mdns_lab import start
from netlab import NetLab
from netlab_program import Program

from aiosollol.core.networks import Interface
from aiosollol.discovery.advertiser import Advertiser
from aiosollol.discovery.local_machine import parse_interface
from aiosollol.discovery.mdns import browse, multicast_addresses
from aiosollol.errors import InvalidInput
from aiosollol.wire.announcement import Announcement

pytestmark = pytest.mark.anyio
in_lab = pytest.mark.netlab


async def said(program: Program, text: str, **options: Any) -> dict[str, Any]:
    """The first line with this text, once it has been printed."""
    line: dict[str, Any] = json.loads(await program.line_with(text, **options))
    return line


def lines(program: Program) -> list[dict[str, Any]]:
    return [json.loads(line) for line in program.stdout().splitlines()]


@in_lab
async def test_a_node_is_heard_followed_and_gone(netlab: NetLab) -> None:
    node, other = await netlab.host("10.77.0.11", "fd77::11"), await netlab.host("10.77.0.12")
    url, addresses = "http://10.77.0.11:8888/ollama", ("10.77.0.11", "fd77::11")
    early = await start(other, "listen", ready="listening")
    speaker = await start(node, "advertise", url, "GPU box (left)", *addresses, ready="announced")
    late = await start(other, "listen")
    assert await said(speaker, "announced") == {"announced": "GPU box (left)"}
    for listener in (early, late):
        heard = await said(listener, "heard")
        assert heard["urls"] == [url, "http://[fd77::11]:8888/ollama"]
        assert heard["name"] == "GPU box (left)"
        assert (heard["version"], heard["machine"], heard["gpu"]) == ("0.1.0", "abc", "A GPU")
        assert (heard["gpu_memory"], heard["gpu_free"], heard["agent"]) == (8, 0, 0)
    print(f"heard {(await said(late, 'heard'))['seconds']:.3f} s after the listener was started")

    await speaker.send(signal.SIGUSR1)
    for listener in (early, late):
        assert (await said(listener, "0.2.0"))["urls"] == heard["urls"]

    await speaker.line_with("updated")
    ended = await speaker.end()  # it is cancelled, and says goodbye all the same
    assert ended.returncode == 0
    assert '{"ended": true, "tasks": 1}' in ended.stdout
    assert ended.stderr == ""
    for listener in (early, late):
        gone = await said(listener, "gone")
        assert (gone["gone"], gone["urls"]) == ("GPU box (left)", heard["urls"])


@in_lab
async def test_one_that_dies_is_still_announced(netlab: NetLab) -> None:
    """Only asking it tells; see `monitor`."""
    node, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    speaker = await start(node, "advertise", "http://10.77.0.11:1", "box", ready="announced")
    listener = await start(other, "listen", "0.7")
    await speaker.kill()
    await listener.line_with("ended")
    assert not [line for line in lines(listener) if "gone" in line]


@in_lab
async def test_a_name_that_is_taken(netlab: NetLab) -> None:
    hosts = [await netlab.host(f"10.77.0.{n}") for n in (11, 12, 13)]
    first, second = [
        await start(h, "advertise", f"http://{h.address}:1", "box", ready="announced")
        for h in hosts[:2]
    ]
    assert (await said(first, "announced"))["announced"] == "box"
    assert (await said(second, "announced"))["announced"] == "box-2"
    listener = await start(hosts[2], "listen")
    assert (await said(listener, '"box"'))["urls"] == ["http://10.77.0.11:1"]
    assert (await said(listener, '"box-2"'))["urls"] == ["http://10.77.0.12:1"]


@in_lab
async def test_a_name_that_two_take_at_the_same_time(netlab: NetLab) -> None:
    hosts = [await netlab.host(f"10.77.0.{n}") for n in (11, 12, 13)]
    listener = await start(hosts[2], "listen", ready="listening")
    both = [await start(h, "advertise", f"http://{h.address}:1", "box") for h in hosts[:2]]
    names = {}
    for host, speaker in zip(hosts, both, strict=False):
        names[(await said(speaker, "announced"))["announced"]] = [f"http://{host.address}:1"]
    assert len(names) == 2
    assert "box" in names
    async with asyncio.timeout(10):  # who listened all the while was told of both in the end
        while {each["heard"]: each["urls"] for each in lines(listener) if "heard" in each} != names:
            await asyncio.sleep(0.02)
    late = await start(hosts[2], "listen")
    for name, urls in names.items():
        assert (await said(late, f'"{name}"'))["urls"] == urls


@in_lab
async def test_junk_becomes_no_node(netlab: NetLab) -> None:
    bad, good, other = [await netlab.host(f"10.77.0.{n}") for n in (11, 12, 13)]
    listener = await start(other, "listen", ready="listening")
    await start(bad, "junk", bad.address, ready="sent")
    await start(good, "advertise", "http://10.77.0.12:1", "good", ready="announced")
    await listener.line_with("good")
    late = await start(other, "listen", "1.5")
    await late.line_with("ended")
    for each in (listener, late):
        heard = [line["urls"] for line in lines(each) if "heard" in line]
        # A description that cannot be read is left out; the node that it describes is there.
        assert ["http://10.77.0.12:1"] in heard
        assert all(
            url.startswith(("http://10.77.0.12:1", "http://10.77.0.99:1234"))
            for urls in heard
            for url in urls
        )
        assert not [url for urls in heard for url in urls if "evil" in url or ".." in url]


@in_lab
async def test_listening_ends_in_time(netlab: NetLab) -> None:
    node = await netlab.host("10.77.0.11")
    listener = await start(node, "listen", "0.1")
    done = await listener.wait()
    assert done == (0, '{"listening": true}\n{"ended": true, "tasks": 1}\n', "")


@in_lab
async def test_no_network_and_no_port(netlab: NetLab) -> None:
    node = await netlab.host("10.77.0.11")
    programs = [await start(node, "occupied")]
    assert (await programs[0].wait()).returncode == 0
    await node.run("ip", "address", "flush", "dev", "eth0")
    programs.append(await start(node, "listen"))
    programs.append(await start(node, "advertise", "http://10.77.0.11:1", "box"))
    for program in programs:
        await program.wait()
    problems = [line for program in programs for line in lines(program)]
    assert [line["error"] for line in problems] == ["NodeUnreachable"] * 4
    assert all("5353" in line["message"] for line in problems[:2])
    assert all("on no network" in line["message"] for line in problems[2:])


# ---- without a packet


@pytest.mark.parametrize("url", ["http://127.0.0.1:11434", "http://localhost", "[::1]", "0.0.0.0"])
def test_loopback_is_not_announced(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"OLLAMA_HOST=0\.0\.0\.0"):
        Advertiser(url, Announcement("box"))
    with pytest.raises(InvalidInput, match=r"OLLAMA_HOST=0\.0\.0\.0"):
        Advertiser("http://gpu-box:11434", Announcement("box"), addresses=["10.0.0.2", "127.0.0.1"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "http://gpu-box:11434"}, r"'gpu-box' is not an IP address: pass addresses="),
        ({"addresses": []}, "must be a list of IP addresses"),
        ({"addresses": "10.0.0.2"}, "must be a list of IP addresses"),
        ({"announcement": Announcement("")}, "is not a name for a node"),
        ({"announcement": Announcement("\x07")}, "is not a name for a node"),
        ({"announcement": Announcement("box", version="a b")}, "cannot be announced"),
        ({"url": "http://10.0.0.2/a/../b"}, "cannot be announced"),
    ],
)
def test_what_cannot_be_announced(options: dict[str, Any], problem: str) -> None:
    given = {"url": "http://10.0.0.2:11434", "announcement": Announcement("box")} | options
    with pytest.raises(InvalidInput, match=problem):
        Advertiser(**given)


def test_names_are_made_fit() -> None:
    names = {"box.lan": "box-lan", "ü" * 40: "ü" * 29, " a\x1b[31mb ": "a[31mb"}
    for name, fit in names.items():
        advertiser = Advertiser("10.0.0.2", Announcement(name))
        assert (advertiser.name, advertiser.addresses) == (fit, ("10.0.0.2",))


async def test_update_needs_an_open_advertiser() -> None:
    with pytest.raises(InvalidInput, match="not open"):
        await Advertiser("10.0.0.2", Announcement("box")).update(Announcement("box"))


@pytest.mark.parametrize("interfaces", [[], "10.0.0.2", ["eth0"]])
async def test_interfaces_are_addresses(interfaces: Any) -> None:
    with pytest.raises(InvalidInput, match="interfaces"):
        async with browse(interfaces=interfaces):
            pass


def test_which_interfaces_are_used() -> None:
    def interface(name: str, address: str, mask: str) -> Interface:
        made = parse_interface(name, {"addr": address, "mask": mask})
        assert made is not None
        return made

    lo = interface("lo", "127.0.0.1", "255.0.0.0")
    wifi = interface("wlan0", "192.168.1.7", "255.255.255.0")
    second = interface("wlan0", "192.168.1.8", "255.255.255.0")
    six = interface("wlan0", "fe80::1", "ffff:ffff:ffff:ffff::/64")
    docker = interface("docker0", "172.17.0.1", "255.255.0.0")
    vpn = interface("wg0", "10.8.0.2", "255.255.255.0")
    assert multicast_addresses([lo, vpn]) == []
    assert multicast_addresses([lo, six, wifi, second, docker, vpn]) == [
        "192.168.1.7",
        "172.17.0.1",
    ]
    assert multicast_addresses([lo, six]) == ["fe80::1"]


def test_importing_loads_no_zeroconf() -> None:
    code = (
        "import sys, aiosollol.discovery.mdns, aiosollol.discovery.advertiser\n"
        "assert not {'zeroconf', 'ifaddr', 'netifaces'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
