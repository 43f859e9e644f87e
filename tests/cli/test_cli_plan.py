"""`aiosollol plan`, `stats` and `embed --trace`, over fake nodes without sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_cluster import Cluster, use

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
from aiosollol.cli.output import seconds_text
from aiosollol.core.scheduling.cost import Cost
from aiosollol.testing import FakeModel, Fault

MODEL = "nomic-embed-text"
FAST = Cost(0.0, 0.001, observations=5)
MEDIUM = Cost(0.0, 0.002, observations=5)
SLOW = Cost(0.0, 0.1, observations=5)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr("aiosollol.batch.executor.GIVE_UP_SECONDS", 0.0)
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


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def plan_of(*args: str) -> list[str]:
    return ["plan", "--model", MODEL, *args]


# --- plan


def test_plan_prints_the_report(
    cluster: Cluster, known: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    known(a=FAST, b=MEDIUM, c=SLOW)
    nodes = ("--node=a", "--node=b", "--node=c")
    args = ("--no-measure", "--sizes", "1,300", "--tokens-per-item", "100")
    assert main(plan_of(*nodes, *args)) == 0
    assert shown(capsys) == [
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
    lines = shown(capsys)
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


# --- measuring


@pytest.mark.anyio
async def test_what_is_measured_is_known_to_the_registry(cluster: Cluster) -> None:
    registry = NodeRegistry(["a", "b"])
    measured = await measure.measure(registry, ["a:11434"], MODEL)
    assert measured.nodes == ["a:11434"]
    assert not measured.failures
    assert registry["a:11434"].cost(MODEL).observations > 2
    assert registry["a:11434"].counters.vectors == len(measure.TEXTS)
    assert registry["b:11434"].cost(MODEL).observations == 0


@pytest.mark.anyio
async def test_a_node_that_never_answers_is_given_up(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "LOAD_SECONDS", 0.01)
    cluster.faults["a:11434"] = Fault.HANG
    measured = await measure.measure(NodeRegistry(["a"]), ["a:11434"], MODEL)
    assert str(measured.failures["a:11434"]) == "a:11434: no answer within 0.01 s"


@pytest.mark.anyio
async def test_a_slow_node_is_known_by_what_it_did_in_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[Any] = []

    async def slow(nodes: NodeRegistry, model: str, texts: Any) -> None:
        if len(texts) > 1:
            for node in nodes:
                node.learn(model, 10.0, 0.0, 1.0)
            answered.append(texts)
            raise TimeoutError

    monkeypatch.setattr(measure, "_embed", slow)
    registry = NodeRegistry(["a"])
    measured = await measure.measure(registry, ["a:11434"], MODEL)
    assert not measured.failures
    assert registry["a:11434"].cost(MODEL).observations == 1
    assert len(answered) == 1


def test_the_texts_are_of_many_lengths_and_all_different() -> None:
    lengths = [len(text.split()) for text in measure.TEXTS]
    assert (min(lengths), max(lengths)) == (3, 34)
    assert len(set(measure.TEXTS)) == len(set(lengths)) == len(measure.TEXTS) == 32


# --- stats


def test_stats_prints_a_table(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.faults["b:11434"] = Fault.REFUSE
    assert main(["stats", "--node=a", "--node=b"]) == 1
    assert shown(capsys) == [
        "node     healthy  runs on  requests  errors  average  in flight",
        "a:11434  yes      -               0       0        -          0",
        "b:11434  no       -               0       0        -          0",
        "b:11434 (http://b:11434): connection refused",
        "This command counts only its own requests; --model NAME sends some.",
    ]


def test_stats_of_a_measurement(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.options["b:11434"] = {"models": [FakeModel("other")]}
    assert main(["stats", "--node=a", "--node=b", "--model", MODEL, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    a, b = told["nodes"]
    assert a["requests"] == told["requests"] > 1
    assert a["average_seconds"] is not None
    assert {key: a[key] for key in ("name", "url", "healthy", "processor", "errors", "error")} == {
        "name": "a:11434",
        "url": "http://a:11434",
        "healthy": True,
        "processor": "CPU",
        "errors": 0,
        "error": None,
    }
    assert (b["requests"], b["average_seconds"], b["in_flight"]) == (0, None, 0)
    assert told["measured"]["nodes"] == ["a:11434"]
    assert told["strategy"] == "performance"


def test_stats_of_a_measurement_as_a_table(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", "--node=a", "--model", MODEL]) == 0
    told = capsys.readouterr()
    assert told.err == "Measuring ...\n"
    first, header, row = told.out.splitlines()
    assert first.startswith("Measured: ")
    assert header.split()[:2] == ["node", "healthy"]
    assert row.startswith("a:11434  yes      CPU ")


def test_stats_of_a_model_that_no_node_has(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", "--node=a", "--model", "nope"]) == 1
    assert shown(capsys)[-1] == "No node that answers has the model 'nope'."


def test_stats_of_a_node_that_fails(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.faults["a:11434"] = Fault.HTML
    assert main(["stats", "--node=a", "--model", MODEL]) == 1
    assert shown(capsys)[-1].startswith("a:11434 was not measured: ")


# --- the trace of embed


@pytest.fixture
def texts(tmp_path: Path) -> Callable[[int], str]:
    def write(count: int) -> str:
        path = tmp_path / "in.jsonl"
        lines = (json.dumps({"text": f"text number {index}"}) + "\n" for index in range(count))
        path.write_text("".join(lines))
        return str(path)

    return write


def test_embed_writes_one_trace_of_all_segments(
    cluster: Cluster, texts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, count = tmp_path / "trace.json", 2 * embed.SEGMENT + 10
    out = str(tmp_path / "v.npy")
    args = ("--node=a", "--node=b", "--passage-size=0", "--out", out, "--trace", str(trace))
    assert main(["embed", texts(count), *args]) == 0
    events = json.loads(trace.read_text())["traceEvents"]
    chunks = [event for event in events if event["ph"] == "X"]
    done = [event for event in chunks if event["cat"] == "done"]
    assert sum(event["args"]["items"] for event in done) >= count
    assert {event["args"]["node"] for event in chunks} == {"a:11434", "b:11434"}
    assert min(event["ts"] for event in chunks) == 0
    told = capsys.readouterr().err
    assert f"Trace in {trace}: open it at ui.perfetto.dev" in told


def test_embed_that_fails_has_a_trace_of_what_was_done_or_none(
    cluster: Cluster, texts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.faults["a:11434"] = Fault.REFUSE
    trace = tmp_path / "trace.json"
    trace.write_text("before")
    args = ("--node=a", "--out", str(tmp_path / "v.npy"), "--trace", str(trace))
    assert main(["embed", texts(3), *args]) == 1
    assert trace.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "trace.json"]
    assert "Trace in" not in capsys.readouterr().err


def test_embed_names_the_trace_in_its_summary(
    cluster: Cluster, texts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, out = str(tmp_path / "trace.json"), str(tmp_path / "v.npy")
    args = ("--node=a", "--json", "--out", out, "--trace", trace)
    assert main(["embed", texts(3), *args]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["trace"], summary["findings"]) == (trace, [])


# --- words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.00214, "0.0021 s"),
        (0.0514, "0.051 s"),
        (0.104, "0.10 s"),
        (9.994, "9.99 s"),
        (12.54, "12.5 s"),
        (3600.4, "3,600 s"),
    ],
)
def test_seconds_have_the_digits_that_matter(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text
