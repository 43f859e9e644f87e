"""What the operating system tells of the networks around, read and understood."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import tomllib
from typing import Any

import ifaddr
import project_paths
import pytest
from netlab import NetLab
from packaging.requirements import Requirement

from aiosollol.discovery.local_machine import (
    parse_arp,
    parse_interface,
    read_by_ifaddr,
    read_by_netifaces,
    read_surroundings,
)

pytestmark = pytest.mark.anyio

ARP = """\
IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         02:fc:00:00:00:05     *        eth0
192.168.1.9      0x1         0x0         00:00:00:00:00:00     *        eth0
192.168.1.20     0x1         0x6         02:fc:00:00:00:06     *        eth0

192.168.1.21     0x1
192.168.1.22     0x1         zz          02:fc:00:00:00:06     *        eth0
"""


def test_the_arp_table_knows_who_has_answered() -> None:
    assert parse_arp(ARP) == ["192.168.1.1", "192.168.1.20"]
    assert parse_arp("") == []


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"addr": "10.0.0.7", "mask": "255.255.255.0"}, "10.0.0.7/24"),
        (
            {"addr": "10.0.0.7", "netmask": "255.255.0.0", "broadcast": ""},
            "10.0.0.7/16",
        ),
        ({"addr": "10.0.0.7"}, "10.0.0.7/32"),
        ({"addr": "10.0.0.7", "mask": "odd"}, None),
        ({"addr": "fe80::1%eth0", "mask": "ffff:ffff:ffff:ffff::"}, "fe80::1/64"),
        ({"addr": "fd00::2", "netmask": "ffff:ffff:ffff:ffff::/64"}, "fd00::2/64"),
        ({"addr": "::1"}, "::1/128"),
        ({"addr": "02:fc:00:00:00:05"}, None),
        ({"addr": ""}, None),
        ({}, None),
    ],
)
def test_addresses_as_systems_write_them(entry: dict[str, str], expected: str | None) -> None:
    interface = parse_interface("eth0", entry)
    assert (None if interface is None else str(interface.address)) == expected
    assert interface is None or interface.name == "eth0"


@pytest.mark.parametrize(
    ("ip", "prefix", "expected"),
    [
        ("10.0.0.7", 24, "10.0.0.7/24"),
        ("10.0.0.7", 32, "10.0.0.7/32"),
        ("10.0.0.7", 0, "10.0.0.7/0"),
        (("fe80::1", 0, 2), 64, "fe80::1/64"),  # with a flow label and a scope
        (("fd00::2", 7, 0), 128, "fd00::2/128"),
    ],
)
async def test_addresses_as_ifaddr_has_them(
    monkeypatch: pytest.MonkeyPatch, ip: Any, prefix: int, expected: str
) -> None:
    addresses = [ifaddr.IP(ip, prefix, "a connection")]
    adapters = [ifaddr.Adapter("{846EE342}", "eth0", addresses), ifaddr.Adapter("{0}", "eth1", [])]
    monkeypatch.setitem(sys.modules, "netifaces", None)
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters)
    (interface,) = (await read_surroundings()).interfaces
    assert (interface.name, str(interface.address)) == ("eth0", expected)


def test_netifaces_and_ifaddr_agree_on_this_machine() -> None:
    pytest.importorskip("netifaces")
    by_ifaddr = sorted(read_by_ifaddr(), key=str)
    assert sorted(read_by_netifaces(), key=str) == by_ifaddr
    assert "127.0.0.1/8" in {str(each.address) for each in by_ifaddr}


ADD_INTERFACES = """
set -e
ip address add 10.77.0.12/24 dev eth0
ip address add 10.77.0.13/32 dev eth0
ip address add 10.77.0.14/24 dev eth0 label eth0:one
ip link add peer0 type veth peer name bare0
ip address add 10.78.0.1 peer 10.78.0.2 dev peer0
ip address add 10.78.1.0/31 dev peer0
ip link set peer0 up
ip link set bare0 addrgenmode none up
ip link add down0 type veth peer name down1
ip address add 10.79.0.1/20 dev down0
if [ -d /proc/sys/net/ipv6 ]; then
    ip address add fd77::12/48 dev eth0 nodad
    ip address add fd78::1 peer fd78::2 dev peer0 nodad
fi
"""
READ_BOTH = """
import json
from aiosollol.discovery.local_machine import read_by_ifaddr, read_by_netifaces

print(json.dumps([
    sorted((each.name, str(each.address)) for each in read())
    for read in (read_by_netifaces, read_by_ifaddr)
]))
"""


@pytest.mark.netlab
async def test_netifaces_and_ifaddr_agree_on_every_kind_of_interface(netlab: NetLab) -> None:
    pytest.importorskip("netifaces")
    host = await netlab.host("10.77.0.11")
    done = await host.run("sh", "-c", ADD_INTERFACES)
    assert done.returncode == 0, done.stderr
    by_netifaces, by_ifaddr = json.loads(await host.python(READ_BOTH))
    assert by_netifaces == by_ifaddr
    assert [(name, address) for name, address in by_ifaddr if ":" not in address] == [
        ("down0", "10.79.0.1/20"),
        ("eth0", "10.77.0.11/24"),
        ("eth0", "10.77.0.12/24"),
        ("eth0", "10.77.0.13/32"),
        ("eth0:one", "10.77.0.14/24"),
        ("lo", "127.0.0.1/8"),
        ("peer0", "10.78.0.1/32"),
        ("peer0", "10.78.1.0/31"),
    ]
    six = [[name, address] for name, address in by_ifaddr if ":" in address]
    if six:
        assert [each for each in six if not each[1].startswith("fe80:")] == [
            ["eth0", "fd77::12/48"],
            ["lo", "::1/128"],
            ["peer0", "fd78::1/128"],
        ]
        link_local = [name for name, address in six if address.startswith("fe80:")]
        assert link_local == ["eth0", "peer0"]


async def test_without_netifaces_ifaddr_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before = await read_surroundings()
    monkeypatch.setitem(sys.modules, "netifaces", None)
    assert (await read_surroundings()).interfaces == before.interfaces


async def test_on_windows_netifaces_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match="two IPv4 addresses"):
        read_by_netifaces()


# platform_machine as the systems name it: netifaces2 has wheels for the first three.
@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", "netifaces2"),
        ("linux", "aarch64", "netifaces2"),
        ("darwin", "x86_64", "netifaces2"),
        ("darwin", "arm64", "ifaddr"),
        ("win32", "AMD64", "ifaddr"),
        ("win32", "ARM64", "ifaddr"),
        ("win32", "x86", "ifaddr"),
        ("linux", "riscv64", "ifaddr"),
        ("freebsd14", "amd64", "ifaddr"),
        ("linux", "", "ifaddr"),
    ],
)
def test_each_platform_depends_on_one_of_the_two(system: str, machine: str, expected: str) -> None:
    file = project_paths.ROOT / "pyproject.toml"
    lines = tomllib.loads(file.read_text())["project"]["dependencies"]
    environment = {"sys_platform": system, "platform_machine": machine}
    named = [
        each.name
        for each in map(Requirement, lines)
        if each.marker is None or each.marker.evaluate(environment)
    ]
    assert sorted({*named} & {"ifaddr", "netifaces2"}) == [expected]


async def test_this_machine_has_loopback_and_a_name() -> None:
    surroundings = await read_surroundings()
    assert "127.0.0.1" in {str(each.address.ip) for each in surroundings.interfaces}
    assert all(each.kind == "loopback" for each in surroundings.interfaces if each.name == "lo")
    assert surroundings.host_name == socket.gethostname()


async def test_reading_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    netifaces = pytest.importorskip("netifaces")
    loop = asyncio.get_running_loop()
    going = asyncio.Event()

    def interfaces() -> list[str]:
        # Only a loop that goes on can set the event.
        asyncio.run_coroutine_threadsafe(going.wait(), loop).result(10)
        return []

    monkeypatch.setattr(netifaces, "interfaces", interfaces)
    reading = asyncio.create_task(read_surroundings())
    await asyncio.sleep(0)
    going.set()
    assert (await reading).interfaces == ()


async def test_an_interface_that_goes_while_it_is_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    netifaces = pytest.importorskip("netifaces")

    def ifaddresses(name: str) -> dict[int, Any]:
        if name == "gone0":
            raise ValueError("You must specify a valid interface name.")
        return {netifaces.AF_INET: [{"addr": "10.0.0.7", "mask": "255.255.255.0"}]}

    monkeypatch.setattr(netifaces, "interfaces", lambda: ["gone0", "eth0"])
    monkeypatch.setattr(netifaces, "ifaddresses", ifaddresses)
    surroundings = await read_surroundings()
    assert [each.name for each in surroundings.interfaces] == ["eth0"]
    assert "gone0" in caplog.text


@pytest.mark.parametrize("error", [OSError, RuntimeError, ValueError, AssertionError])
@pytest.mark.parametrize("missing", [False, True])
async def test_a_system_that_does_not_tell_its_interfaces(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    missing: bool,
    error: type[Exception],
) -> None:
    def fail() -> None:
        raise error("no such table")

    if missing:
        monkeypatch.setitem(sys.modules, "netifaces", None)
        monkeypatch.setattr(ifaddr, "get_adapters", fail)
    else:
        monkeypatch.setattr(pytest.importorskip("netifaces"), "interfaces", fail)
    surroundings = await read_surroundings()
    assert surroundings.interfaces == ()
    assert surroundings.host_name
    assert "no such table" in caplog.text


async def test_no_arp_table_is_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosollol.discovery.local_machine._ARP_TABLE", "/nonexistent")
    assert (await read_surroundings()).neighbours == ()
