"""The command line in this process: `nodes`, versions, help, and how wrong usage is explained."""

from __future__ import annotations

import json

import pytest
from cli_pool import StubPool, use_stub

from aiosollol import __version__
from aiosollol.cli import embed, main, nodes
from aiosollol.core.node import ClusterView, LoadedModel, ModelInfo, NodeSpec, NodeState
from aiosollol.errors import NodeError


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[StubPool]:
    return use_stub(monkeypatch, embed, nodes)


def view() -> ClusterView:
    up = NodeState(
        NodeSpec("10.0.0.2", name="gpu"),
        version="0.33.0",
        models={"m:latest": ModelInfo("m:latest"), "n:1b": ModelInfo("n:1b")},
        loaded={"n:1b": LoadedModel("n:1b", size=2**31, size_vram=2**30)},
    )
    down = NodeState(NodeSpec("10.0.0.3"), is_down=True, error="refused\x1b[2J")
    return ClusterView({up.name: up, down.name: down})


def test_nodes_prints_a_table(pool: type[StubPool], capsys: pytest.CaptureFixture[str]) -> None:
    pool.view = view()
    assert main(["nodes"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "node            answers  version  models          loaded",
        "gpu             yes      0.33.0   m:latest, n:1b  n:1b (1.0 GiB VRAM)",
        "10.0.0.3:11434  no       -        -               -",
        "10.0.0.3:11434 (http://10.0.0.3:11434): refused�[2J",
    ]


def test_nodes_prints_json(pool: type[StubPool], capsys: pytest.CaptureFixture[str]) -> None:
    pool.view = ClusterView({"gpu": view().nodes["gpu"]})
    assert main(["nodes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "nodes": [
            {
                "name": "gpu",
                "url": "http://10.0.0.2:11434",
                "answers": True,
                "version": "0.33.0",
                "models": ["m:latest", "n:1b"],
                "loaded": [{"name": "n:1b", "size": 2**31, "size_vram": 2**30}],
                "found_by": None,
                "cpu_load": None,
                "gpu_memory_total": None,
                "gpu_memory_free": None,
                "error": None,
            }
        ]
    }


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["frobnicate"], "frobnicate"),
        (["embed", "--nodes", "x"], "--nodes"),
        (["embed", "--passage-size", "-1"], "passage-size"),
        (["embed", "--passage-size", "many"], "passage-size"),
        (["embed", "--embedded", "--node", "x", "f"], "not both"),
        (["embed", "no such file"], "no such file: No such file"),
        (["embed", __file__, "--out", "v.txt"], ".npy or .jsonl"),
        (["embed", __file__, "--policy", "best"], "policy must be one of"),
        (["embed", __file__, "--same-machine", "no"], "same_machine must be one of"),
        (["embed", __file__, "--out", "v.jsonl", "--trace", "v.jsonl"], "give two files"),
        (["embed", __file__, "--trace", "none/t.json"], "--trace none/t.json: No such file"),
        (["embed", __file__, "--trace", "."], "--trace .: is a directory"),
        (["plan", "--sizes", "10,many"], "not '10,many'"),
        (["plan", "--sizes", "0"], "of at least 1"),
        (["plan", "--sizes", ","], "of at least 1"),
        (["plan", "--tokens-per-item", "0"], "tokens-per-item"),
        (["plan", "--policy", "best"], "policy must be one of"),
        (["plan", "--same-machine", "no"], "same_machine must be one of"),
        (["plan", "--node", "ftp://x"], "not http or https"),
        (["stats", "--node", "ftp://x"], "not http or https"),
        (["node", "--port", "70000"], "--port"),
        (["embed", __file__, "--node", "ftp://x"], "not http or https"),
        (["nodes", "--node", "a b"], "a b"),
        (["verify", "--model", "m", "--node", "ftp://x"], "not http or https"),
        (["verify"], "--model"),
        (["warm", "--model", "m", "--node", "ftp://x"], "not http or https"),
        (["warm"], "--model"),
        (["route"], "--model"),
        (["route", "--model", "m", "--kind", "talk"], "--kind must be one of embed, chat, gen"),
        (["route", "--model", "m", "--node=a", "--strategy", "best"], "routing_strategy must be"),
        (["route", "--model", "m", "--tokens", "-1"], "--tokens"),
        (["discover", "--port", "0"], "--port"),
        (["discover", "--port", "many"], "--port"),
        (["discover", "--timeout", "0"], "timeout must be a number of seconds above 0"),
        (["discover", "--subnet", "10.0.0.0/33"], "is not a network"),
        (["advertise", "--url", "ftp://x"], "not http or https"),
        (["advertise", "--vram-gb", "much"], "--vram-gb"),
        (["advertise", "--vram-gb", "-1"], "vram_gb must be"),
        (["agent", "--url", "ftp://x"], "not http or https"),
        (["agent", "--port", "70000"], "--port"),
        (["agent", "--vram-gb", "0", "--once"], "vram_gb must be"),
        (["config", "--node", "x"], "--node"),
    ],
)
def test_bad_usage_is_2_and_explained(
    pool: type[StubPool], capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_an_error_of_a_node_is_a_failure(
    pool: type[StubPool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def refresh(self: StubPool) -> ClusterView:
        raise NodeError("gpu", "broke")

    monkeypatch.setattr(pool, "refresh", refresh)
    assert main(["nodes", "--node=127.0.0.1"]) == 1
    assert capsys.readouterr().err == "error: gpu: broke\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aiosollol {__version__}\n"


COMMANDS = [
    *("demo", "embed", "generate", "plan", "node"),
    *("nodes", "stats", "route", "verify", "warm"),
    *("discover", "advertise", "agent", "config"),
    *("up", "key"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("-h", "--help"):
        assert main([command, flag]) == 0
        assert f"\n    aiosollol {command}" in capsys.readouterr().out


def test_help_tells_the_commands_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "Exit codes: 0 done, 1 something failed, 2 bad" in shown
    listed = shown.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert sorted(line.split()[0] for line in listed) == sorted(COMMANDS)
    assert [line for line in listed if line.endswith("...")] == []


@pytest.mark.parametrize("command", ["embed", "nodes", "plan", "stats", "route", "verify", "warm"])
def test_help_tells_which_nodes_are_used(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "a search of the network finds; with SOLLOL_AUTO_DISCOVER=false, this machine" in shown
