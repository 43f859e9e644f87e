"""With which nodes a pool begins: arguments, environment, file, search, localhost."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from aiosollol import ConfigError, InvalidInput, NodeRegistry
from aiosollol.config.resolve import resolve
from aiosollol.pool.bootstrap import LOCALHOST, SMALL_SUBNET, begin
from aiosollol.testing import FakeTransport

HOST, FILE, GIVEN = "http://10.0.0.7:11434", "http://10.0.0.8:11434", "http://10.0.0.9:11434"


def begin_with(nodes: Any, **arguments: Any) -> tuple[list[str], bool]:
    """The URLs of the nodes, and whether there will be a search."""
    beginning = begin(nodes, resolve(arguments), lambda spec: FakeTransport(spec.name))
    return list(beginning.registry.nodes), beginning.search is not None


@pytest.fixture
def node_file(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "aiosollol" / "nodes.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"nodes": [{"url": FILE}]}))
    return path


@pytest.mark.parametrize(
    ("nodes", "host", "file", "environment", "argument", "urls", "searches"),
    [
        # Nothing is known: search, unless that is turned off.
        (None, "", False, "", None, [], True),
        (None, "", False, "true", None, [], True),
        (None, "", False, "", True, [], True),
        (None, "", False, "false", None, [LOCALHOST], False),
        (None, "", False, "", False, [LOCALHOST], False),
        (None, "", False, "true", False, [LOCALHOST], False),
        # A named node is enough, unless the program itself says otherwise.
        (None, HOST, False, "", None, [HOST], False),
        (None, HOST, True, "true", None, [HOST], False),
        (None, HOST, False, "", True, [HOST], True),
        ([GIVEN], HOST, True, "", None, [GIVEN], False),
        ([GIVEN], HOST, True, "true", None, [GIVEN], False),
        ([GIVEN], "", False, "", True, [GIVEN], True),
        ([], "", False, "", True, [], True),
        # The file is the fallback; a search that is asked for comes first, and adds to it.
        (None, "", True, "", None, [FILE], False),
        (None, "", True, "true", None, [FILE], True),
        (None, "", True, "", True, [FILE], True),
        (None, "", True, "false", None, [FILE], False),
        (NodeRegistry([GIVEN]), HOST, True, "true", None, [GIVEN], False),
        (NodeRegistry([GIVEN]), "", False, "", True, [GIVEN], True),
        (NodeRegistry(auto_discover=True), "", False, "", None, [], True),
        (NodeRegistry(), "", False, "", None, [], False),
    ],
)
def test_where_nodes_come_from(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    nodes: Any,
    host: str,
    file: bool,
    environment: str,
    argument: bool | None,
    urls: list[str],
    searches: bool,
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    monkeypatch.setenv("SOLLOL_AUTO_DISCOVER", environment)
    if file:
        request.getfixturevalue("node_file")
    assert begin_with(nodes, auto_discover=argument) == (urls, searches)


def test_a_search_that_nobody_asked_for_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOLLOL_AUTO_DISCOVER")
    resolved = resolve({"discovery_timeout": 0.25, "trusted": ["10.0.0.2"]})
    search = begin(None, resolved, lambda spec: FakeTransport(spec.name)).search
    assert search == {"timeout": 0.25, "trusted": ("10.0.0.2",), "max_addresses": SMALL_SUBNET}


@pytest.mark.parametrize("nodes", ["10.0.0.2", {"url": "10.0.0.2"}, 5, b"10.0.0.2"])
def test_nodes_that_are_no_list(nodes: Any) -> None:
    with pytest.raises(InvalidInput, match="nodes must be a list"):
        begin_with(nodes)


def test_no_nodes_at_all() -> None:
    with pytest.raises(InvalidInput, match="pass at least one"):
        begin_with([])


def test_a_broken_file_is_named(node_file: pathlib.Path) -> None:
    node_file.write_text("{")
    with pytest.raises(ConfigError, match=r"nodes\.json"):
        begin_with(None)
