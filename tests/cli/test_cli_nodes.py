"""`aiosollol nodes`, `route`, `verify` and `warm`, and which nodes commands work on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cli_cluster import Cluster, use

from aiosollol import NodeRegistry, OllamaPool
from aiosollol.cli import (
    embed,
    main,
    measure,
    models,
    nodes,
    plan,
    route,
)
from aiosollol.cli import measure as beginning
from aiosollol.config.node_files import save_nodes
from aiosollol.core.networks import Discovered
from aiosollol.core.node import NodeSpec
from aiosollol.pool.bootstrap import Beginning
from aiosollol.testing import FakeModel, Fault
from aiosollol.wire.agent import AgentReport, Gpu, dump_report

MODEL = "nomic-embed-text"
SEARCHING = (
    "searching the network for Ollama servers (SOLLOL_AUTO_DISCOVER=false turns this off) ..."
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return use(monkeypatch, (embed, measure, nodes, plan, route, nodes, models, models))


def out(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def told_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


# --- which nodes


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


# --- nodes


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
    header, *rows = out(capsys)
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


# --- route


def test_route_measures_and_explains(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.options["b:11434"] = {"models": [FakeModel("other")]}
    assert main(["route", "--model", MODEL, "--node=a", "--node=b"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "Measuring ...\n"
    head, header, first, legend, second = shown.out.splitlines()
    assert head == f"{MODEL} goes to a:11434, by the strategy 'performance'"
    assert header.split() == ["node", "expected", "own"]
    assert first.startswith("->  a:11434 ")
    assert legend == "expected: seconds until the answer; own: the request alone."
    assert second == f"b:11434 is not eligible: lacks the model {MODEL}"


def test_route_json_is_the_whole_decision(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.faults["b:11434"] = Fault.REFUSE
    args = ["route", "--model", MODEL, "--node=a", "--node=b", "--tokens=200", "--json"]
    assert main(args) == 0
    told = told_json(capsys)
    a, b = told.pop("nodes")
    measured = told.pop("measured")
    assert told == {
        "model": MODEL,
        "kind": "embed",
        "tokens": 200.0,
        "strategy": "performance",
        "chosen": "a:11434",
        "waits": False,
    }
    assert measured["nodes"] == ["a:11434"]
    assert (a["name"], a["eligible"], a["reason"]) == ("a:11434", True, None)
    # What was measured is what is expected: nothing is under way, and nobody has complained.
    assert a["terms"]["expected"] == a["terms"]["own"] > 0.0
    assert (b["eligible"], b["terms"]) == (False, {})
    assert b["reason"].startswith("down: ")


def test_route_by_score(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["route", "--model", MODEL, "--node=a", "--strategy=score", "--no-measure"]
    assert main(args) == 0
    _, header, _, legend = out(capsys)
    terms = ["score", "cpu", "gpu", "priority", "latency", "failures"]
    assert header.split() == ["node", *terms]
    assert legend.startswith("The lowest score is best")


def test_route_shows_what_makes_a_difference(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["route", "--model", MODEL, "--node=a", "--no-measure"]) == 0
    _, header, row, legend, last = out(capsys)
    assert header.split() == ["node", "expected", "own", "load"]
    assert row.split()[-1] == "5"  # a guess, for a model that is not in memory
    assert legend.endswith("load: the model load.")
    assert last.startswith("A new process knows no speeds")


def test_route_of_a_chat_is_not_measured(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.options["a:11434"] = {"models": [FakeModel("llama3.2", kind="chat")]}
    assert main(["route", "--model=llama3.2", "--kind=chat", "--node=a"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "A new process knows no speeds" in shown.out
    assert cluster.nodes["a:11434"].requests == 0


def test_route_follows_the_settings(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLLOL_ROUTING_STRATEGY", "least_loaded")
    assert main(["route", "--model", MODEL, "--node=a", "--no-measure", "--json"]) == 0
    assert told_json(capsys)["strategy"] == "least_loaded"


def test_route_to_nobody(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", "--model=nope", "--node=a"]) == 1
    assert out(capsys) == [
        "no node is eligible for nope",
        "a:11434 is not eligible: lacks the model nope",
    ]


def test_route_says_whose_vectors_differ(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, digest in (("a", "aaaaaaa1"), ("b", "bbbbbbb1")):
        cluster.options[f"{name}:11434"] = {"models": [FakeModel(MODEL, digest=digest)]}
    assert main(["route", "--model", MODEL, "--node=a", "--node=b", "--no-measure"]) == 0
    shown = capsys.readouterr()
    assert "are not comparable between all nodes" in shown.err
    assert "vectors differ: digest bbbbbbb1, not aaaaaaa1" in shown.out


# --- verify


def test_verify_of_equal_nodes(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.options["c:11434"] = {"models": [FakeModel("other")]}
    assert main(["verify", "--model", MODEL, "--node=a", "--node=b", "--node=c"]) == 0
    header, a, b, c, last = out(capsys)
    assert header.split() == ["node", "digest", "alone", "in", "a", "list", "vectors"]
    for row in (a, b):
        assert row.split()[2:] == ["1.000000", "1.000000", "the", "same"]
    assert c == "c:11434 is left out: it does not have the model"
    assert last.startswith("The numbers are the smallest cosine to the vectors of a:11434")


def test_verify_of_a_node_that_differs(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.options["b:11434"] = {"models": [FakeModel(MODEL, digest="bbbbbbb1")]}
    args = ["verify", "--model", MODEL, "--node=a", "--node=b"]
    assert main(args) == 1
    lines = out(capsys)
    assert lines[2].endswith("DIFFERENT")
    assert lines[-1].startswith("Do not mix vectors of b:11434 with those of the others")
    assert main([*args, "--json"]) == 1
    told = told_json(capsys)
    assert (told["reference"], told["different"]) == ("a:11434", ["b:11434"])
    assert [node["same"] for node in told["nodes"]] == [True, False]
    assert told["nodes"][1]["digest"] == "bbbbbbb1"
    assert told["failed"] == told["absent"] == {}


def test_verify_of_nodes_that_fail(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.faults |= {"b:11434": Fault.HTML, "c:11434": Fault.REFUSE}
    args = ["verify", "--model", MODEL, "--node=a", "--node=b", "--node=c"]
    assert main(args) == 1
    shown = capsys.readouterr().out
    assert "b:11434 gave no vectors: " in shown
    assert "c:11434 is left out: connection refused" in shown
    assert main([*args, "--json"]) == 1
    told = told_json(capsys)
    assert list(told["failed"]) == ["b:11434"]
    assert told["absent"] == {"c:11434": "connection refused"}


# --- warm


def test_warm_tells_of_each_node(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.options["b:11434"] = {"models": [FakeModel("other")]}
    assert main(["warm", "--model", MODEL, "--node=a", "--node=b", "--node=c"]) == 0
    shown = capsys.readouterr()
    assert shown.err == f"Loading {MODEL} on a:11434, c:11434 ...\n"
    *done, absent = shown.out.splitlines()
    assert sorted(line.split(":11434: ")[0] for line in done) == ["a", "c"]
    assert all("in memory after " in line for line in done)
    assert absent == "b:11434 is left out: it does not have the model"


def test_warm_where_nodes_fail(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.faults |= {"b:11434": Fault.ERROR_500, "c:11434": Fault.REFUSE}
    args = ["warm", "--model", MODEL, "--node=a", "--node=b", "--node=c"]
    assert main(args) == 1
    shown = capsys.readouterr().out
    assert "b:11434: failed: " in shown
    assert "c:11434 is left out: connection refused" in shown
    assert main([*args, "--json"]) == 1
    told = told_json(capsys)
    assert (told["model"], list(told["seconds"])) == (MODEL, ["a:11434"])
    assert list(told["failed"]) == ["b:11434"]
    assert list(told["absent"]) == ["c:11434"]


@pytest.mark.parametrize("command", ["warm", "verify"])
def test_a_model_that_no_node_has(
    command: str, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--model=nope", "--node=a", "--json"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no node has the model 'nope'" in shown.err
