"""Which nodes are one machine, and which are one server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.locality import (
    THIS_MACHINE,
    MachineFacts,
    duplicates,
    machine_of,
    machines_of,
)
from aiosollol.core.node import NodeSpec

FACTS = MachineFacts(
    own=frozenset({"10.0.0.2", "172.17.0.1", "fd00::2"}),
    resolved={
        "here.lan": frozenset({"10.0.0.2"}),
        "gpu.lan": frozenset({"10.0.0.3"}),
        "gpu-too.lan": frozenset({"10.0.0.3"}),
        "both.lan": frozenset({"10.0.0.3", "fd00::3"}),
        "balanced.lan": frozenset({"10.0.0.3", "10.0.0.4"}),
    },
)


def specs_of(nodes: list[Any]) -> list[NodeSpec]:
    return [NodeSpec.parse(node) for node in nodes]


@pytest.mark.parametrize(
    ("node", "machine"),
    [
        ("127.0.0.1", THIS_MACHINE),
        ("127.9.8.7:11435", THIS_MACHINE),
        ("localhost", THIS_MACHINE),
        ("LOCALHOST:1", THIS_MACHINE),
        ("ollama.localhost", THIS_MACHINE),
        ("http://[::1]:11434", THIS_MACHINE),
        ("10.0.0.2", "10.0.0.2"),
        ("https://10.0.0.2:8443/prefix", "10.0.0.2"),
        ("http://[fd00::2]:11434", "fd00::2"),
        ("http://[fd00:0:0::2]:11434", "fd00::2"),
        ("gpu.example.org", "gpu.example.org"),
        ("GPU.example.org:11435", "gpu.example.org"),
        ("notlocalhost", "notlocalhost"),
        ({"url": "10.0.0.2", "machine": "rack1"}, "rack1"),
        ({"url": "127.0.0.1", "machine": "gpu0"}, "gpu0"),
        ({"url": "10.0.0.2", "name": "gpu"}, "10.0.0.2"),
    ],
)
def test_the_machine_of_a_node_by_its_address_alone(node: Any, machine: str) -> None:
    assert machine_of(NodeSpec.parse(node)) == machine


@pytest.mark.parametrize(
    ("node", "machine"),
    [
        ("10.0.0.2", THIS_MACHINE),
        ("172.17.0.1:11435", THIS_MACHINE),  # this machine as its containers see it
        ("http://[fd00:0::2]:11434", THIS_MACHINE),
        ("here.lan", THIS_MACHINE),
        ("gpu.lan", "10.0.0.3"),
        ("GPU.lan:11435", "10.0.0.3"),
        ("balanced.lan", "balanced.lan"),
        ("unknown.lan", "unknown.lan"),
        ({"url": "10.0.0.2", "machine": "gpu0"}, "gpu0"),
    ],
)
def test_the_machine_of_a_node_by_what_was_learned(node: Any, machine: str) -> None:
    assert machine_of(NodeSpec.parse(node), FACTS) == machine


@pytest.mark.parametrize(
    ("nodes", "groups"),
    [
        ([], []),
        (["10.0.0.3", "10.0.0.4"], [0, 1]),
        (["127.0.0.1:1", "10.0.0.2:2", "here.lan:3", "172.17.0.1:4", "10.0.0.3"], [0, 0, 0, 0, 1]),
        (["gpu.lan", "gpu-too.lan:1", "10.0.0.3:2"], [0, 0, 0]),
        # IPv4 and IPv6 of one machine, joined by a name that has both.
        (["10.0.0.3:1", "http://[fd00::3]:2", "both.lan:3"], [0, 0, 0]),
        (["10.0.0.3:1", "http://[fd00::3]:2"], [0, 1]),
        # A balanced name is none of the machines behind it.
        (["balanced.lan", "10.0.0.3", "10.0.0.4"], [0, 1, 2]),
        # A label overrides what the addresses say, both ways.
        ([{"url": "10.0.0.3:1", "machine": "a"}, {"url": "10.0.0.3:2", "machine": "b"}], [0, 1]),
        ([{"url": "10.0.0.3", "machine": "a"}, {"url": "10.0.0.4", "machine": "a"}], [0, 0]),
        ([{"url": "10.0.0.3:1", "machine": "a"}, "10.0.0.3:2"], [0, 1]),
        # So does what the nodes say themselves, where there is no label.
        (["10.0.0.7", "10.0.0.8", "10.0.0.9"], [0, 0, 1]),
        (["127.0.0.1:1", "10.0.0.10"], [0, 0]),
        (["10.0.0.7", {"url": "10.0.0.8", "machine": "a"}], [0, 1]),
    ],
)
def test_nodes_seen_together(nodes: list[Any], groups: list[int]) -> None:
    told = {
        "10.0.0.7:11434": "twin",
        "10.0.0.8:11434": "twin",
        "10.0.0.9:11434": "other",
        "10.0.0.10:11434": "mine",
    }
    facts = FACTS._replace(machines=told, own_machine="mine")
    machines = list(machines_of(specs_of(nodes), facts).values())
    assert [machines.index(machine) for machine in machines] == [
        groups.index(group) for group in groups
    ]


def test_this_machine_is_called_so_however_it_is_reached() -> None:
    facts = FACTS._replace(machines={"10.0.0.10:11434": "mine"}, own_machine="mine")
    machines = machines_of(specs_of(["10.0.0.10", "10.0.0.3"]), facts)
    assert machines == {"10.0.0.10:11434": THIS_MACHINE, "10.0.0.3:11434": "10.0.0.3"}


@pytest.mark.parametrize(
    ("nodes", "dropped"),
    [
        (["127.0.0.1", "10.0.0.2"], {"127.0.0.1:11434": "10.0.0.2:11434"}),
        (["10.0.0.2", "localhost"], {"localhost:11434": "10.0.0.2:11434"}),
        (["http://[::1]:11434", "10.0.0.2"], {"[::1]:11434": "10.0.0.2:11434"}),
        (["localhost", "127.0.0.1"], {"127.0.0.1:11434": "localhost:11434"}),
        (["here.lan", "127.0.0.1"], {"127.0.0.1:11434": "here.lan:11434"}),
        (["gpu.lan", "gpu-too.lan"], {"gpu-too.lan:11434": "gpu.lan:11434"}),
        (["gpu.lan", "10.0.0.3"], {"10.0.0.3:11434": "gpu.lan:11434"}),
        # Not the same server:
        (["127.0.0.1:11434", "10.0.0.2:11435"], {}),
        (["127.0.0.2", "127.0.0.3", "10.0.0.2"], {}),  # servers can share a machine's loopback
        (["http://10.0.0.3:80/a", "http://10.0.0.3:80/b"], {}),
        (["http://10.0.0.3:11434", "https://10.0.0.3:11434"], {}),
        (["balanced.lan", "10.0.0.3"], {}),
        (["10.0.0.3", "10.0.0.4"], {}),
        (["unknown.lan", "other.lan"], {}),
        ([{"url": "127.0.0.1", "machine": "a"}, {"url": "10.0.0.2", "machine": "b"}], {}),
    ],
)
def test_one_server_under_two_addresses(nodes: list[Any], dropped: dict[str, str]) -> None:
    assert dict(duplicates(specs_of(nodes), FACTS)) == dropped


NODES = st.lists(
    st.sampled_from(
        ["127.0.0.1", "localhost", "10.0.0.2", "here.lan", "gpu.lan", "10.0.0.3", "both.lan"]
    ),
    unique=True,
)


@given(NODES)
def test_a_server_is_never_lost(nodes: list[str]) -> None:
    specs = specs_of(nodes)
    found = duplicates(specs, FACTS)
    dropped = {duplicate.dropped for duplicate in found}
    assert {duplicate.kept for duplicate in found}.isdisjoint(dropped)
    machines = machines_of(specs, FACTS)
    kept = {machines[spec.name] for spec in specs if spec.name not in dropped}
    assert kept == set(machines.values())


@given(NODES, st.randoms(use_true_random=False))
def test_machines_do_not_depend_on_the_order(nodes: list[str], rng: Any) -> None:
    shuffled = list(nodes)
    rng.shuffle(shuffled)
    one, other = machines_of(specs_of(nodes), FACTS), machines_of(specs_of(shuffled), FACTS)
    for first in one:
        for second in one:
            assert (one[first] == one[second]) == (other[first] == other[second])
