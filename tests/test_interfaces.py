"""What the operating system tells of the networks around, read and understood."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from aiosollol.discovery.interfaces import parse_arp, parse_interface, read_surroundings

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


async def test_this_machine_has_loopback_and_a_name() -> None:
    surroundings = await read_surroundings()
    assert "127.0.0.1" in {str(each.address.ip) for each in surroundings.interfaces}
    assert all(each.kind == "loopback" for each in surroundings.interfaces if each.name == "lo")
    assert surroundings.host_name == socket.gethostname()


async def test_reading_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    import netifaces

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
    import netifaces

    def ifaddresses(name: str) -> dict[int, Any]:
        if name == "gone0":
            raise ValueError("You must specify a valid interface name.")
        return {netifaces.AF_INET: [{"addr": "10.0.0.7", "mask": "255.255.255.0"}]}

    monkeypatch.setattr(netifaces, "interfaces", lambda: ["gone0", "eth0"])
    monkeypatch.setattr(netifaces, "ifaddresses", ifaddresses)
    surroundings = await read_surroundings()
    assert [each.name for each in surroundings.interfaces] == ["eth0"]
    assert "gone0" in caplog.text


async def test_no_arp_table_is_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosollol.discovery.interfaces._ARP_TABLE", "/nonexistent")
    assert (await read_surroundings()).neighbours == ()
