"""`aiosollol nodes`, and which nodes commands work on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cli_cluster import Cluster, output_lines, told_json, use

from aiosollol import NodeRegistry, OllamaPool
from aiosollol.cli import (
    embed,
    main,
    measure,
    nodes,
    plan,
)
from aiosollol.cli import measure as beginning
from aiosollol.config.files import save_nodes
from aiosollol.core.networks import Discovered
from aiosollol.core.node import NodeSpec
from aiosollol.pool.bootstrap import Beginning
from aiosollol.wire.agent import AgentReport, Gpu, dump_report

SEARCHING = (
    "searching the network for Ollama servers (SOLLOL_AUTO_DISCOVER=false turns this off) ..."
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return use(monkeypatch, (embed, measure, nodes, plan))


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``search(one, two)``: that is what a search of the network finds."""

    def finding(*found: Discovered, named: tuple[NodeSpec, ...] = ()) -> None:
        async def search(**options: Any) -> AsyncIterator[Discovered]:
            assert options["max_addresses"] == 256
            for each in found:
                yield each

        def begin(given: Any, resolved: Any, factory: Any) -> Beginning:
            assert given is None
            registry = NodeRegistry(named, search=search, transport_factory=factory)
            return Beginning(registry, {"timeout": 0.5, "max_addresses": 256})

        monkeypatch.setattr(beginning, "begin", begin)

    return finding


ONE = Discovered("http://127.0.0.1:1", "0.33.0", (), "scan", 0.001)
TWO = Discovered("http://127.0.0.1:2", "0.33.0", (), "zeroconf", 0.001, "box")


def test_nodes_that_are_found_are_told_with_how(
    cluster: Cluster, search: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    search(ONE, TWO)
    assert main(["nodes"]) == 0
    shown = capsys.readouterr()
    first, second = shown.err.splitlines()
    assert first == f"No node is named: {SEARCHING}"
    assert second.startswith("Found within ")
    assert second.endswith(" s: 127.0.0.1:1, box")
    header, *rows = shown.out.splitlines()
    assert header.split() == ["node", "answers", "version", "by", "models", "loaded"]
    assert [row.split()[3] for row in rows] == ["found", "announced"]


def test_json_tells_of_a_search_and_no_more(
    cluster: Cluster, search: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    search(ONE)
    assert main(["nodes", "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == f"No node is named: {SEARCHING}\n"
    (node,) = json.loads(shown.out)["nodes"]
    assert (node["name"], node["found_by"]) == ("127.0.0.1:1", "scan")


@pytest.mark.parametrize(
    "argv",
    [
        ["nodes"],
        ["stats"],
        ["plan"],
        ["route", "--model=m"],
        ["verify", "--model=m"],
        ["warm", "--model=m"],
        ["embed", __file__],
    ],
)
def test_a_search_that_finds_nothing_is_a_failure(
    argv: list[str],
    cluster: Cluster,
    search: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    search()
    assert main(argv) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert SEARCHING in shown.err
    assert "error: no Ollama server was found on the network" in shown.err
    assert "aiosollol discover" in shown.err


def test_a_search_beside_a_file_says_so(
    cluster: Cluster,
    search: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beginning, "find_nodes_file", lambda: Path("n.json"))
    search(ONE, named=(NodeSpec("127.0.0.1:3"),))
    assert main(["nodes"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith(f"Using the nodes in n.json, and {SEARCHING}\n")
    assert shown.out.count("yes") == 2


def test_where_nodes_come_from_is_told(
    cluster: Cluster,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def told() -> str:
        main(["stats"])
        return capsys.readouterr().err

    assert told() == (
        "No node is named and auto_discover is off; using this machine: 127.0.0.1:11434\n"
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "aiosollol").mkdir()
    file = tmp_path / "aiosollol" / "nodes.json"
    save_nodes(file, [NodeSpec("127.0.0.1:1", name="one"), NodeSpec("127.0.0.1:2")])
    assert told() == f"Using the nodes in {file}: one, 127.0.0.1:2\n"
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:7")
    assert told() == "Using the node in OLLAMA_HOST: 127.0.0.1:7\n"
    file.write_text("[")
    monkeypatch.delenv("OLLAMA_HOST")
    assert main(["stats"]) == 2
    assert "nodes.json, line 1" in capsys.readouterr().err


def test_two_names_of_one_server_are_one_node(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nodes", "--node=localhost:1", "--node=127.0.0.1:1", "--json"]) == 0
    shown = capsys.readouterr()
    assert "are one server" in shown.err
    assert len(json.loads(shown.out)["nodes"]) == 1


def test_nodes_shows_what_an_agent_tells(
    cluster: Cluster,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    report = AgentReport(cpu_load=0.274, gpus=(Gpu("L4", 24 * 2**30, 18 * 2**30),))

    class Agent:
        async def request(self, *_: Any, **__: Any) -> bytes:
            return dump_report(report)

        async def aclose(self) -> None: ...

    def transport(spec: NodeSpec) -> Any:
        return Agent() if "agent" in spec.name else cluster.transport(spec)

    def pool(registry: NodeRegistry) -> OllamaPool:
        return OllamaPool(registry, transport_factory=transport)

    monkeypatch.setattr(nodes, "OllamaPool", pool)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "aiosollol").mkdir()
    save_nodes(
        tmp_path / "aiosollol" / "nodes.json",
        [
            NodeSpec("127.0.0.1:1", agent="http://127.0.0.1:11435"),
            NodeSpec("127.0.0.1:2", vram_gb=8),
            NodeSpec("127.0.0.1:3"),
        ],
    )
    assert main(["nodes"]) == 0
    header, *rows = output_lines(capsys)
    assert header.split() == [
        "node",
        "answers",
        "version",
        "CPU",
        "GPU",
        "memory",
        "models",
        "loaded",
    ]
    assert " 27%  18.0 of 24.0 GiB free  " in rows[0]
    assert "   -  8.0 of 8.0 GiB free    " in rows[1]
    assert "   -  -                      " in rows[2]
    assert main(["nodes", "--json"]) == 0
    first, second, third = told_json(capsys)["nodes"]
    assert (first["cpu_load"], first["gpu_memory_free"]) == (0.274, 18 * 2**30)
    assert first["gpu_memory_total"] == 24 * 2**30
    assert (second["cpu_load"], second["gpu_memory_total"]) == (None, 8 * 2**30)
    assert third["gpu_memory_free"] is None
