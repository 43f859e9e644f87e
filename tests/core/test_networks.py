"""Which addresses are asked, in which order, and which networks are left alone: pure decisions."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.networks import (
    Interface,
    SweepOptions,
    kind_of,
    parse_networks,
    parse_subnets,
    plan_sweep,
)
from aiosollol.errors import InvalidInput


def interface(address: str, name: str = "eth0") -> Interface:
    parse = IPv6Interface if ":" in address else IPv4Interface
    return Interface(name, parse(address))


def subnets(*texts: str) -> SweepOptions:
    return SweepOptions(subnets=parse_subnets(texts))


@pytest.mark.parametrize(
    ("name", "address", "kind"),
    [
        ("lo", "127.0.0.1", "loopback"),
        ("lo0", "::1", "loopback"),
        ("eth0", "127.0.1.1", "loopback"),
        ("eth0", "192.168.1.7", "lan"),
        ("enp3s0", "10.0.0.7", "lan"),
        ("wlan0", "8.8.8.8", "lan"),
        ("br0", "192.168.1.7", "lan"),
        ("br-lan", "192.168.1.7", "lan"),
        ("eth0", "fd00::7", "lan"),
        ("eth0", "169.254.3.4", "link-local"),
        ("docker0", "169.254.3.4", "link-local"),
        ("eth0", "fe80::1", "link-local"),
        ("docker0", "172.17.0.1", "docker"),
        ("docker_gwbridge", "172.18.0.1", "docker"),
        ("br-0123456789ab", "172.19.0.1", "docker"),
        ("br-0123456789abc", "172.19.0.1", "lan"),
        ("veth1a2b", "10.0.0.1", "docker"),
        ("podman0", "10.88.0.1", "docker"),
        ("cni-podman0", "10.88.0.1", "docker"),
        ("virbr0", "192.168.122.1", "docker"),
        ("tun0", "10.8.0.2", "vpn"),
        ("tap1", "10.8.0.2", "vpn"),
        ("wg0", "10.9.0.2", "vpn"),
        ("tailscale0", "100.101.102.103", "vpn"),
        ("utun4", "10.9.0.2", "vpn"),
        ("ppp0", "10.9.0.2", "vpn"),
        ("ztabcdef12", "10.9.0.2", "vpn"),
        ("eth0", "100.64.0.9", "vpn"),
        ("eth0", "100.128.0.9", "lan"),
        ("tunnel-shop", "10.8.0.2", "vpn"),
    ],
)
def test_kinds(name: str, address: str, kind: str) -> None:
    assert kind_of(name, ipaddress.ip_address(address)) == kind
    assert interface(f"{address}/{128 if ':' in address else 32}", name).kind == kind


def test_a_small_network_is_swept_from_our_own_address_outwards() -> None:
    plan = plan_sweep([interface("192.168.1.4/29")], [], SweepOptions())
    assert plan.skipped == ()
    assert plan.addresses == tuple(f"192.168.1.{last}" for last in (4, 3, 5, 2, 6, 1))


def test_whom_we_have_met_is_asked_before_whom_is_near() -> None:
    met = ["192.168.1.6", "192.168.1.1", "10.0.0.1", "not an address", "fe80::1"]
    plan = plan_sweep([interface("192.168.1.4/29")], met, SweepOptions())
    assert plan.addresses == tuple(f"192.168.1.{last}" for last in (4, 6, 1, 3, 5, 2))


def test_a_whole_c_network_is_254_addresses() -> None:
    plan = plan_sweep([interface("10.1.2.3/24")], [], SweepOptions())
    assert len(plan.addresses) == len(set(plan.addresses)) == 254
    assert plan.addresses[0] == "10.1.2.3"
    assert not {"10.1.2.0", "10.1.2.255"} & set(plan.addresses)


@pytest.mark.parametrize(
    ("address", "name", "words"),
    [
        ("10.0.0.7/21", "eth0", ["2,048 addresses", "10.0.0.0/24", "--subnet 10.0.0.0/24"]),
        ("172.17.0.1/16", "docker0", ["docker0", "containers", "--subnet 172.17.0.0/16"]),
        ("10.8.0.2/24", "tun0", ["tun0", "VPN", "subnets=['10.8.0.0/24']"]),
        ("169.254.3.4/16", "eth0", ["link-local"]),
        ("8.8.8.8/24", "eth0", ["public network", "--subnet 8.8.8.0/24"]),
        ("192.0.2.2/24", "eth0", ["public network"]),  # is no RFC 1918, whatever it is
        ("fd00::7/64", "eth0", ["IPv6", "announce"]),
    ],
)
def test_networks_that_are_left_alone(address: str, name: str, words: list[str]) -> None:
    plan = plan_sweep([interface(address, name)], [], SweepOptions())
    (skipped,) = plan.skipped
    assert skipped.network == str(interface(address).network)
    assert all(word in skipped.reason for word in words), skipped.reason
    assert str(skipped).startswith(f"{skipped.network} was not searched: ")
    # Our own address in such a network is no stranger, if others may reach us by it.
    is_lan = name == "eth0" and ":" not in address and not address.startswith("169.254")
    assert plan.addresses == ((address.partition("/")[0],) if is_lan else ())


def test_what_needs_no_sweep_is_not_even_mentioned() -> None:
    interfaces = [interface("127.0.0.1/8", "lo"), interface("::1/128", "lo")]
    interfaces += [interface("fe80::1/64"), interface("192.168.1.4/30")]
    assert plan_sweep(interfaces, [], SweepOptions()).skipped == ()


def test_a_pool_sweeps_less_than_a_user() -> None:
    interfaces = [interface("192.168.4.7/22")]
    assert len(plan_sweep(interfaces, [], SweepOptions()).addresses) == 1022
    plan = plan_sweep(interfaces, [], SweepOptions(max_addresses=256))
    assert plan.addresses == ("192.168.4.7",)
    assert "more than 256" in plan.skipped[0].reason


def test_kinds_can_be_asked_for() -> None:
    options = SweepOptions(kinds=frozenset({"vpn"}))
    interfaces = [interface("10.8.0.2/30", "wg0"), interface("192.168.1.4/30")]
    plan = plan_sweep(interfaces, [], options)
    assert set(plan.addresses) == {"10.8.0.1", "10.8.0.2"}
    assert [skipped.network for skipped in plan.skipped] == ["192.168.1.4/30"]


def test_named_networks_replace_those_of_interfaces() -> None:
    interfaces = [interface("192.168.1.4/24"), interface("172.17.0.1/16", "docker0")]
    plan = plan_sweep(interfaces, [], subnets("172.17.0.0/30", "8.8.8.8"))
    assert set(plan.addresses) == {"172.17.0.1", "172.17.0.2", "8.8.8.8"}
    assert plan.addresses[0] == "172.17.0.1"
    assert plan.skipped == ()


def test_named_networks_may_be_large() -> None:
    assert len(plan_sweep([], [], subnets("10.0.0.0/20")).addresses) == 4094


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.7", ["10.0.0.7"]),
        ("10.0.0.7/32", ["10.0.0.7"]),
        ("10.0.0.6/31", ["10.0.0.6", "10.0.0.7"]),  # both are hosts (RFC 3021)
        ("10.0.0.6/30", ["10.0.0.5", "10.0.0.6"]),
        (" 10.0.0.4/30 ", ["10.0.0.5", "10.0.0.6"]),
    ],
)
def test_small_networks(text: str, expected: list[str]) -> None:
    assert sorted(plan_sweep([], [], subnets(text)).addresses) == expected


@pytest.mark.parametrize("address", ["10.0.0.7/32", "8.8.8.8/32"])
def test_an_interface_with_a_network_of_its_own(address: str) -> None:
    plan = plan_sweep([interface(address)], [], SweepOptions())
    assert plan.addresses == (address.partition("/")[0],)
    assert plan.skipped == ()


def test_a_public_neighbour_is_a_stranger() -> None:
    plan = plan_sweep([interface("8.8.8.8/31")], [], SweepOptions())
    assert plan.addresses == ("8.8.8.8",)
    assert "public" in plan.skipped[0].reason


def test_networks_that_overlap_are_asked_once() -> None:
    interfaces = [interface("10.0.0.9/24"), interface("10.0.0.10/24", "wlan0")]
    plan = plan_sweep(interfaces, [], SweepOptions())
    assert len(plan.addresses) == len(set(plan.addresses)) == 254
    assert plan.addresses[:2] == ("10.0.0.9", "10.0.0.10")
    plan = plan_sweep([], [], subnets("10.0.0.0/29", "10.0.0.0/24", "10.0.0.3"))
    assert len(plan.addresses) == len(set(plan.addresses)) == 254


def test_broadcast_addresses_of_interfaces_are_never_asked() -> None:
    plan = plan_sweep([interface("10.0.0.9/25")], [], subnets("10.0.0.0/24"))
    assert "10.0.0.127" not in plan.addresses
    assert "10.0.0.128" in plan.addresses


def test_allow_and_deny() -> None:
    options = SweepOptions(
        allow=parse_networks("allow", ["192.168.1.0/30", "192.168.1.5"]),
        deny=parse_networks("deny", ["192.168.1.2"]),
    )
    plan = plan_sweep([interface("192.168.1.4/29")], [], options)
    assert plan.addresses == ("192.168.1.3", "192.168.1.5", "192.168.1.1")
    assert options.permits(IPv4Address("192.168.1.1"))
    assert not options.permits(IPv4Address("192.168.1.2"))
    assert not options.permits(ipaddress.ip_address("fd00::1"))
    assert SweepOptions().permits(ipaddress.ip_address("fd00::1"))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["10.0.0.0/33"], ["'10.0.0.0/33'", "like 192.168.1.0/24"]),
        (["10.0.0"], ["'10.0.0'", "subnets"]),
        (["gpu-box"], ["'gpu-box'"]),
        ([""], ["''"]),
        ([7], ["7", "int"]),
        ("10.0.0.0/24", ["a list", "['10.0.0.0/24']"]),
        (["fd00::/64"], ["IPv6", "advertise"]),
        (["10.0.0.0/8"], ["16,777,216", "65,536", "10.0.0.0/24"]),
    ],
)
def test_bad_subnets_are_explained(texts: list[str], words: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_subnets(texts)
    assert all(word in str(caught.value) for word in words), caught.value


def test_allow_and_deny_may_hold_ipv6() -> None:
    assert parse_networks("deny", ["fd00::/8", "10.0.0.1"]) == (
        ipaddress.ip_network("fd00::/8"),
        ipaddress.ip_network("10.0.0.1/32"),
    )


addresses = st.integers(0x0A000000, 0x0A0003FF).map(IPv4Address)  # 10.0.0.0/22
interfaces = st.builds(
    lambda ip, length: interface(f"{ip}/{length}"), addresses, st.integers(20, 32)
)
networks = st.builds(
    lambda ip, length: IPv4Network((ip, length), strict=False), addresses, st.integers(24, 32)
)


@given(
    st.lists(interfaces, max_size=3),
    st.lists(addresses.map(str), max_size=5),
    st.none() | st.lists(networks, max_size=3).map(tuple),
    st.lists(networks, max_size=2).map(tuple),
)
def test_what_holds_for_every_plan(
    here: list[Interface],
    met: list[str],
    named: tuple[IPv4Network, ...] | None,
    denied: tuple[IPv4Network, ...],
) -> None:
    plan = plan_sweep(here, met, SweepOptions(subnets=named, deny=denied))
    asked = [IPv4Address(text) for text in plan.addresses]
    assert len(set(asked)) == len(asked)
    own = {each.address.ip for each in here}
    swept = named if named is not None else tuple(i.network for i in here)
    assert all(any(ip in network for network in swept) or ip in own for ip in asked)
    assert not any(ip in network for network in denied for ip in asked)
    for network in (each.network for each in here if each.network.prefixlen < 31):
        assert not {network.network_address, network.broadcast_address} & set(asked)
    first = [ip for ip in asked if ip in own]
    assert asked[: len(first)] == first
    others = asked[len(first) :]
    known = [ip for ip in others if str(ip) in met]
    assert others[: len(known)] == known
    if named is None:
        skipped = {each.network for each in plan.skipped}
        assert skipped == {str(n) for n in swept if n.num_addresses > 1024}
