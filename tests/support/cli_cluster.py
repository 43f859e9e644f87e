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
    """One node, reached by several pools: what one closes stays open for the others."""

    users = 0

    async def aclose(self) -> None:
        self.users -= 1


class Cluster:
    """Nodes, made when first asked for; by `options` and `faults` a test says how."""

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
    """The nodes that commands of these modules reach from now on. No DNS is asked for names."""
    cluster = Cluster()
    pool = functools.partial(OllamaPool, transport_factory=cluster.transport)
    for module in modules:
        monkeypatch.setattr(module, "OllamaPool", pool)
    # `begin` asks no DNS for whoever has transports of his own.
    monkeypatch.setattr(beginning, "HttpTransport", cluster.transport)
    return cluster


def output_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def told_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)
