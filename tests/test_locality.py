"""Which nodes are one machine."""

from __future__ import annotations

from typing import Any

import pytest

from aiosollol.core.locality import THIS_MACHINE, machine_of
from aiosollol.core.node import NodeSpec


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
def test_the_machine_of_a_node(node: Any, machine: str) -> None:
    assert machine_of(NodeSpec.parse(node)) == machine
