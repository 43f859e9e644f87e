"""Measured nodes: `aiosollol stats` and `embed --trace`, over fake nodes without sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
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
from aiosollol.cli.base import seconds_text
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.testing import FakeModel, Fault

MODEL = "nomic-embed-text"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr("aiosollol.core.blame.UNKNOWN_PATIENCE", 0.0)
    return use(monkeypatch, (embed, measure, plan, stats))


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
                node.learn(RouteRequest(model), 10.0, 0.0, 1.0)
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
    assert output_lines(capsys) == [
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
    assert output_lines(capsys)[-1] == "No node that answers has the model 'nope'."


def test_stats_of_a_node_that_fails(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.faults["a:11434"] = Fault.HTML
    assert main(["stats", "--node=a", "--model", MODEL]) == 1
    assert output_lines(capsys)[-1].startswith("a:11434 was not measured: ")


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
