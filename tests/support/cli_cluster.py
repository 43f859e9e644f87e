"""Nodes without sockets, for tests of the command line."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest

from aiosollol import OllamaPool
from aiosollol.cli import measure as beginning
from aiosollol.core.node import NodeSpec
from aiosollol.testing import FakeTransport, Fault


class Shared(FakeTransport):
    """One node shared by several pools: closing one pool leaves it open for the others."""

    users = 0

    async def aclose(self) -> None:
        self.users -= 1


class Cluster:
    """Nodes, created on first use with the test's `options` and `faults`."""

    def __init__(self) -> None:
        self.options: dict[str, dict[str, Any]] = {}
        self.faults: dict[str, Fault] = {}
        self.nodes: dict[str, Shared] = {}

    def transport(self, spec: NodeSpec) -> FakeTransport:
        if spec.name not in self.nodes:
            self.nodes[spec.name] = Shared(spec.name, **self.options.get(spec.name, {}))
            self.nodes[spec.name].fault = self.faults.get(spec.name)
        self.nodes[spec.name].users += 1
        return self.nodes[spec.name]


def use(monkeypatch: pytest.MonkeyPatch, modules: Iterable[ModuleType]) -> Cluster:
    """Make the commands of these modules reach fake nodes, without DNS. Returns the nodes."""
    cluster = Cluster()
    pool = functools.partial(OllamaPool, transport_factory=cluster.transport)
    for module in modules:
        monkeypatch.setattr(module, "OllamaPool", pool)
    # `begin` makes no DNS query for a pool with its own transports.
    monkeypatch.setattr(beginning, "HttpTransport", cluster.transport)
    return cluster


def output_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def told_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)
