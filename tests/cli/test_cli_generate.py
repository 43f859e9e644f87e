"""`aiosollol generate` in this process, over fake nodes: files, resuming, codes, messages."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli_cluster import Cluster, use

from aiosollol.cli import generate, main
from aiosollol.testing import FakeModel, Fault

CHAT = FakeModel("llama3.2", kind="chat")
HELLO = [{"role": "user", "content": "hello there"}]
NODES = ("--node", "a:11434", "--node", "b:11434")


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = use(monkeypatch, [generate])
    cluster.options = {name: {"models": [CHAT]} for name in ("a:11434", "b:11434")}
    return cluster


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    write(path, [{"prompt": f"question {number}", "id": number} for number in range(30)])
    return path


def write(path: Path, values: list[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(prompts: Path, out: Path, *more: str) -> int:
    named = ("--prompts", str(prompts), "--out", str(out))
    return main(["generate", "--model", "llama3.2", *NODES, *named, *more])


def test_replies_are_written_in_the_order_of_the_prompts_with_their_fields(
    nodes: Cluster, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(prompts, out) == 0
    written = rows(out)
    assert [row["line"] for row in written] == list(range(1, 31))
    assert [row["id"] for row in written] == list(range(30))
    assert all(row["response"] and row["reply_tokens"] > 0 for row in written)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "30 replies in" in shown.err


def test_resuming_asks_only_what_has_no_reply(
    nodes: Cluster, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(prompts, out) == 0
    whole = rows(out)
    lines = out.read_text().splitlines(keepends=True)
    failed = json.dumps({"line": 4, "prompt": "question 3", "error": "down"}) + "\n"
    out.write_text("".join([*lines[:3], failed, *lines[10:12], lines[12][:20]]))
    sent = sum(node.requests for node in nodes.nodes.values())
    capsys.readouterr()
    assert run(prompts, out, "--resume", "--json") == 0
    assert sorted(rows(out), key=lambda row: row["line"]) == whole
    assert 25 <= sum(node.requests for node in nodes.nodes.values()) - sent <= 27  # with loads
    told = json.loads(capsys.readouterr().out)
    assert (told["prompts"], told["found"], told["replies"], told["missing"]) == (30, 5, 25, 0)
    assert run(prompts, out, "--resume") == 0
    assert "Every prompt has a reply already." in capsys.readouterr().err


def test_what_failed_is_named_and_can_be_gone_on_with(
    nodes: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(path, ["a", {"prompt": "b"}, "c"])
    nodes.faults = {"a:11434": Fault.BAD_400_UNKNOWN, "b:11434": Fault.BAD_400_UNKNOWN}
    assert run(path, out) == 1
    assert all("error" in row for row in rows(out))
    shown = capsys.readouterr().err
    assert "no reply to line 1" in shown
    assert "3 of 3 have no reply. Run it again with --resume" in shown
    for node in nodes.nodes.values():
        node.fault = None
    assert run(path, out, "--resume") == 0
    assert [row["prompt"] for row in rows(out)] == ["a", "b", "c"]


def test_conversations_are_chats_and_a_system_prompt_comes_first(
    nodes: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(path, [{"messages": HELLO}])
    assert run(path, out, "--system", "Be short.") == 0
    (row,) = rows(out)
    assert row["messages"] == HELLO
    assert row["response"]
    paths = {each.path for node in nodes.nodes.values() for each in node.log if each.model}
    assert "/api/chat" in paths


def test_prompts_come_from_stdin_and_replies_go_to_stdout(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'"hello"\n\n"there"\n')))
    assert main(["generate", "--model", "llama3.2", *NODES]) == 0
    written = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["line"] for row in written] == [1, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1: is not JSON"),
        ("7", "line 1: must be an object or a string"),
        ('"a"\n{"text": "b"}', "line 2: needs 'prompt', a string, or 'messages', a list"),
        ('{"prompt": 7}', "line 1: needs 'prompt'"),
        ('"a"\n{"messages": []}', "line 2: prompts and messages are mixed"),
    ],
    ids=["no JSON", "a number", "no prompt", "no text", "mixed"],
)
def test_bad_prompts_are_refused_by_line_before_anything_is_sent(
    nodes: Cluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    words: str,
) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(text)
    assert run(path, out) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()
    assert not nodes.nodes


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        ("", (), "exists; --resume goes on with it"),
        ('{"a": 1}\n', ("--resume",), "was not written by this command"),
        ("text\n", ("--resume",), "was not written by this command"),
    ],
    ids=["exists", "other JSON", "other text"],
)
def test_a_file_of_others_is_not_touched(
    nodes: Cluster,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    more: tuple[str, ...],
    words: str,
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    assert run(prompts, out, *more) == 2
    assert words in capsys.readouterr().err
    assert out.read_text() == content


def test_resuming_needs_a_file(nodes: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model", "llama3.2", *NODES, "--resume"]) == 2
    assert "--resume needs --out" in capsys.readouterr().err


def test_a_missing_file_is_named(
    nodes: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "none.jsonl", tmp_path / "out.jsonl") == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err
