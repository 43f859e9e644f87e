"""`aiosollol plan`, over fake nodes without sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cli_cluster import Cluster, output_lines, use

from aiosollol import NodeRegistry
from aiosollol.cli import (
    embed,
    main,
    measure,
    plan,
)
from aiosollol.cli import (
    nodes as stats,
)
from aiosollol.core.scheduling.cost import Cost
from aiosollol.testing import FakeModel, Fault

MODEL = "nomic-embed-text"
FAST = Cost(0.0, 0.001, observations=5)
MEDIUM = Cost(0.0, 0.002, observations=5)
SLOW = Cost(0.0, 0.1, observations=5)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr("aiosollol.core.blame.UNKNOWN_PATIENCE", 0.0)
    return use(monkeypatch, (embed, measure, plan, stats))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``known(a=Cost(...))``: what is known of the nodes before the command begins."""

    def know(**costs: Cost) -> None:
        real = plan.registry_of

        async def registry_of(*args: Any, **options: Any) -> NodeRegistry:
            registry = await real(*args, **options)
            for name, cost in costs.items():
                registry[f"{name}:11434"].costs[f"{MODEL}:latest"] = cost
            return registry

        monkeypatch.setattr(plan, "registry_of", registry_of)

    return know


def plan_of(*args: str) -> list[str]:
    return ["plan", "--model", MODEL, *args]


def test_plan_prints_the_report(
    cluster: Cluster, known: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    known(a=FAST, b=MEDIUM, c=SLOW)
    nodes = ("--node=a", "--node=b", "--node=c")
    args = ("--no-measure", "--sizes", "1,300", "--tokens-per-item", "100")
    assert main(plan_of(*nodes, *args)) == 0
    assert output_lines(capsys) == [
        "Batches for nomic-embed-text, 100 tokens an item, policy adaptive",
        "node     runs on  a request  an item",
        "a:11434  -              0 s   0.10 s",
        "b:11434  -              0 s   0.20 s",
        "c:11434  -              0 s   10.0 s",
        "",
        "items  mode                reason            sequential  parallel  recommended   saved",
        "    1  single-node stream  small_batch           0.10 s    0.10 s  sequential      0 s",
        "  300  fan-out             balanced_cluster      30.0 s    20.0 s  parallel     10.0 s",
        "",
        "  1: spreading 1 item would save 0%; a:11434 1",
        "  300: 1.5 times as fast as the best node alone; a:11434 199, b:11434 100, c:11434 1",
    ]


def test_plan_json_is_the_whole_report(
    cluster: Cluster, known: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    known(a=FAST, b=MEDIUM)
    args = ("--no-measure", "--sizes", "300,1", "--tokens-per-item", "100", "--json")
    assert main(plan_of("--node=a", "--node=b", *args)) == 0
    told = json.loads(capsys.readouterr().out)
    large, small = told.pop("sizes")
    assert told == {
        "model": MODEL,
        "tokens_per_item": 100.0,
        "policy": "adaptive",
        "same_machine": "measure",
        "measured": None,
        "nodes": {
            "a:11434": {"request_seconds": 0.0, "token_seconds": 0.001, "answers": 5},
            "b:11434": {"request_seconds": 0.0, "token_seconds": 0.002, "answers": 5},
        },
    }
    assert large == {
        "items": 300,
        "mode": "fan-out",
        "reason": "balanced_cluster",
        "detail": "1.5 times as fast as the best node alone",
        "sequential_seconds": pytest.approx(30.0),
        "parallel_seconds": pytest.approx(20.0),
        "even_split_seconds": pytest.approx(30.0),
        "predicted_seconds": pytest.approx(20.0),
        "recommendation": "parallel",
        "saved_seconds": pytest.approx(10.0),
        "speed_ratio": pytest.approx(2.0),
        "shares": {"a:11434": 200, "b:11434": 100},
        "standby": [],
        "trials": [],
    }
    assert (small["mode"], small["recommendation"]) == ("single-node stream", "sequential")
    assert small["standby"] == ["b:11434"]


def test_plan_by_rules(
    cluster: Cluster, known: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    known(a=FAST, b=SLOW)
    args = ("--no-measure", "--sizes=500", "--policy=rules", "--json")
    assert main(plan_of("--node=a", "--node=b", *args)) == 0
    (entry,) = json.loads(capsys.readouterr().out)["sizes"]
    assert (entry["reason"], entry["shares"]) == ("dominant_node", {"a:11434": 500})


@pytest.mark.parametrize(
    ("same_machine", "workers", "trials"),
    [("measure", 1, True), ("share", 2, False), ("one", 1, False)],
)
def test_plan_for_nodes_on_one_machine(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    same_machine: str,
    workers: int,
    trials: bool,
) -> None:
    real = plan.registry_of

    async def registry_of(*args: Any, **options: Any) -> NodeRegistry:
        registry = await real(*args, **options)
        for node in registry:
            node.costs[f"{MODEL}:latest"] = FAST
        return registry

    monkeypatch.setattr(plan, "registry_of", registry_of)
    nodes = ("--node=a:1", "--node=a:2", "--no-measure", "--sizes=100")
    assert main(plan_of(*nodes, f"--same-machine={same_machine}", "--json")) == 0
    (entry,) = json.loads(capsys.readouterr().out)["sizes"]
    assert len(entry["shares"]) == workers
    assert bool(entry["trials"]) is trials
    assert main(plan_of(*nodes, f"--same-machine={same_machine}")) == 0
    said = "On the machine of a:1: a long batch measures whether it is faster together with"
    assert (said in capsys.readouterr().out) is trials


def test_plan_measures_each_node_by_itself(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    # a:1 and a:2 are one machine: measured one after another, each is known by its own speed.
    nodes = ("--node=a:1", "--node=a:2", "--node=b")
    assert main(plan_of(*nodes, "--sizes=10", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(told["measured"]["nodes"]) == ["a:1", "a:2", "b:11434"]
    assert told["measured"]["texts"] == len(measure.TEXTS)
    assert told["measured"]["errors"] == {}
    assert set(told["nodes"]) == {"a:1", "a:2", "b:11434"}
    assert all(node["answers"] > 0 for node in told["nodes"].values())
    assert told["sizes"][0]["reason"] != "measuring"
    for node in cluster.nodes.values():
        assert node.items == 1 + len(measure.TEXTS), "one text to load the model, then the rest"
        assert node.users == 0


def test_plan_says_what_it_did_and_found(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(plan_of("--node=a", "--sizes=10")) == 0
    told = capsys.readouterr()
    assert told.err == "Measuring ...\n"
    first, second, *rest = told.out.splitlines()
    assert first == "Batches for nomic-embed-text, 75 tokens an item, policy adaptive"
    assert second.startswith("Measured: 32 texts of 3 to 34 words on each node by itself, ")
    # Something was loaded by that, and not into a GPU.
    assert any(line.startswith("a:11434  CPU ") for line in rest)
    assert rest[-1] == "  10: there is no other node; a:11434 10"


def test_plan_without_a_measurement_says_that_it_guesses(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(plan_of("--node=a", "--node=b", "--no-measure", "--sizes=10")) == 0
    lines = output_lines(capsys)
    assert lines[-1] == "  Times are guesses where speeds are not known."
    assert sum(line.count("not known") for line in lines) == 2 * 2 + 2
    assert cluster.nodes["a:11434"].requests == 0


def test_plan_leaves_out_who_cannot_help_and_says_why(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.options["b:11434"] = {"models": [FakeModel("other")]}
    cluster.faults["c:11434"] = Fault.REFUSE
    assert main(plan_of("--node=a", "--node=b", "--node=c", "--sizes=10")) == 0
    told = capsys.readouterr().out
    assert "b:11434 is left out: it does not have the model" in told
    assert "c:11434 is left out: connection refused" in told


def test_plan_goes_on_without_a_node_that_fails_but_is_a_failure(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.faults["b:11434"] = Fault.HTML
    assert main(plan_of("--node=a", "--node=b", "--sizes=10")) == 1
    told = capsys.readouterr().out
    assert "b:11434 was not measured: " in told
    assert "10: " in told


def test_plan_where_every_node_fails(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.faults["a:11434"] = Fault.HTML
    assert main(plan_of("--node=a")) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "error: " in told.err
    assert "Traceback" not in told.err


def test_plan_for_a_model_that_no_node_has(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", "nope", "--node=a"]) == 1
    assert "no node has the model 'nope'" in capsys.readouterr().err


def test_plan_where_no_node_answers(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.faults["a:11434"] = Fault.REFUSE
    assert main(plan_of("--node=a")) == 1
    assert "ollama serve" in capsys.readouterr().err
