"""`aiosollol route`, `verify` and `warm`, over fake nodes without sockets."""

from __future__ import annotations

import pytest
from cli_cluster import Cluster, output_lines, told_json, use

from aiosollol.cli import embed, main, measure, nodes, plan
from aiosollol.testing import FakeModel, Fault

MODEL = "nomic-embed-text"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return use(monkeypatch, (embed, measure, nodes, plan))


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
    # The measured time is the expected one: nothing is in flight, and no node has failed.
    assert a["terms"]["expected"] == a["terms"]["own"] > 0.0
    assert (b["eligible"], b["terms"]) == (False, {})
    assert b["reason"].startswith("down: ")


def test_route_by_score(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["route", "--model", MODEL, "--node=a", "--strategy=score", "--no-measure"]
    assert main(args) == 0
    _, header, _, legend = output_lines(capsys)
    terms = ["score", "cpu", "gpu", "priority", "latency", "failures"]
    assert header.split() == ["node", *terms]
    assert legend.startswith("The lowest score is best")


def test_route_shows_what_makes_a_difference(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["route", "--model", MODEL, "--node=a", "--no-measure"]) == 0
    _, header, row, legend, last = output_lines(capsys)
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


def test_route_without_a_node(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", "--model=nope", "--node=a"]) == 1
    assert output_lines(capsys) == [
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
    header, a, b, c, last = output_lines(capsys)
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
    lines = output_lines(capsys)
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
