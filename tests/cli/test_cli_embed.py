"""`aiosollol embed` in this process, over a stub of a pool: codes, messages, partial files."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_pool import StubPool, use_stub

from aiosollol.cli import embed, main, nodes
from aiosollol.errors import NoNodeAvailable

SEGMENT = embed.SEGMENT


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[StubPool]:
    return use_stub(monkeypatch, embed, nodes)


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[int], str]:
    """Writes a JSON Lines file with `count` texts of different lengths."""

    def write(count: int) -> str:
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps({"text": "x" * (i + 1)}) + "\n" for i in range(count)))
        return str(path)

    return write


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_embed_writes_vectors_in_order(
    pool: type[StubPool], lines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first segment ends after the second has begun, and so after it has ended.
    second_began = asyncio.Event()
    pool.on_batch = staticmethod(
        lambda number: second_began.wait() if number == 1 else second_began.set()
    )
    out, count = tmp_path / "out.jsonl", 3 * SEGMENT + 7
    assert main(["embed", lines(count), "--passage-size=0", "--out", str(out)]) == 0
    assert [row["embedding"][0] for row in rows(out)] == list(range(1, count + 1))
    assert [len(batch) for batch in pool.batches] == [SEGMENT] * 3 + [7]
    assert pool.most_in_flight == embed.IN_FLIGHT
    assert pool.is_closed
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"embedding: {count:,} of {count:,}" in shown.err
    assert f"{count:,} vectors of 2 numbers" in shown.err
    assert f"Result in {out}" in shown.err


def test_embed_reads_stdin_and_writes_stdout(
    pool: type[StubPool], monkeypatch: pytest.MonkeyPatch, capsysbinary: Any
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"One two.\n\nThree."))
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["embed", "--passage-size", "9"]) == 0
    (one, three) = map(json.loads, capsysbinary.readouterr().out.splitlines())
    assert one == {"source": "-", "start": 0, "end": 8, "text": "One two.", "embedding": [8, 1]}
    assert three["text"] == "Three."


def test_embed_says_how_to_spread_the_batch(pool: type[StubPool], lines: Any) -> None:
    assert main(["embed", lines(1)]) == 0
    assert pool.options == {"policy": "adaptive", "same_machine": "measure"}
    assert main(["embed", lines(1), "--policy", "rules", "--same-machine", "share"]) == 0
    assert pool.options == {"policy": "rules", "same_machine": "share"}


def test_embed_json_is_a_summary(
    pool: type[StubPool], lines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.bad_texts = frozenset({"xx"})
    out = str(tmp_path / "out.npy")
    assert main(["embed", lines(3), "--json", "--out", out, "--model", "m"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert {"seconds", "per_second"} <= set(summary)
    assert summary["model"] == "m"
    assert (summary["passages"], summary["embedded"], summary["missing"]) == (3, 2, 1)
    assert summary["nodes"] == {"a": {"items": 3, "requests": 1, "retries": 0}}
    assert [(e["line"], e["error"]) for e in summary["errors"]] == [(2, "too odd")]
    assert summary["out"] == out


@pytest.mark.parametrize(
    ("given", "passed", "is_said"),
    [
        ([], "ignore", True),
        (["--on-truncate", "warn"], "ignore", True),
        (["--on-truncate", "ignore"], "ignore", False),
        (["--on-truncate", "raise"], "raise", False),
    ],
)
def test_embed_says_how_many_passages_were_cut(
    pool: type[StubPool],
    lines: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    passed: str,
    is_said: bool,
) -> None:
    pool.context = SEGMENT - 1
    out = str(tmp_path / "out.npy")
    arguments = ["embed", lines(SEGMENT + 2), "--passage-size=0", "--out", out, *given]
    assert main(arguments) == 0
    assert pool.on_truncate == passed, "the command says it itself, of all segments"
    assert ("3 passages appear to be longer" in capsys.readouterr().err) == is_said
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["truncated"] == 3


def test_embed_knows_three_answers_to_long_passages(
    pool: type[StubPool], lines: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", lines(1), "--on-truncate", "cut"]) == 2
    assert "'ignore', 'warn' or 'raise'" in capsys.readouterr().err


def test_embed_without_out_keeps_its_summary_off_stdout(
    pool: type[StubPool], lines: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", lines(2), "--json"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert json.loads(shown.err.splitlines()[-1])["embedded"] == 2


def test_a_missing_vector_is_named_and_is_a_failure(
    pool: type[StubPool], lines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.bad_texts = frozenset({"xx", "xxxx"})
    out = tmp_path / "out.jsonl"
    assert main(["embed", lines(5), "--out", str(out)]) == 1
    assert [row["embedding"] is None for row in rows(out)] == [False, True, False, True, False]
    told = capsys.readouterr().err
    assert "in.jsonl, line 2, characters 0 to 2: too odd" in told
    assert "2 of 5 passages are missing" in told


def test_no_text_is_no_failure(
    pool: type[StubPool], lines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["embed", lines(0), "--out", str(out)]) == 0
    assert out.read_text() == ""
    assert pool.batches == []
    assert "no text" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_a_valid_partial_file(
    pool: type[StubPool],
    lines: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    suffix: str,
) -> None:
    async def interrupt() -> None:
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    # The third segment is begun when the first is written.
    pool.on_batch = staticmethod(lambda count: interrupt() if count == 3 else None)
    out, total = tmp_path / f"out.{suffix}", 4 * SEGMENT
    assert main(["embed", lines(total), "--passage-size=0", "--out", str(out)]) == code
    assert pool.in_flight == 0
    assert pool.is_closed
    told = capsys.readouterr().err
    written = _count_rows(out)
    assert written in (SEGMENT, 2 * SEGMENT)
    assert f"{total - written:,} of {total:,} passages are missing" in told
    assert f"Partial result in {out}" in told
    assert "error" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", out.name]


def _count_rows(path: Path) -> int:
    if path.suffix == ".jsonl":
        return len(rows(path))
    shape = eval(path.read_bytes()[10:128])["shape"]
    assert path.stat().st_size == 128 + shape[0] * shape[1] * 4
    return int(shape[0])


def test_a_failure_in_the_middle_keeps_what_is_done(
    pool: type[StubPool], lines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise NoNodeAvailable("no node is left", {"a": "refused"})

    pool.on_batch = staticmethod(fail)
    out = tmp_path / "out.jsonl"
    assert main(["embed", lines(5 * SEGMENT), "--passage-size=0", "--out", str(out)]) == 1
    assert len(rows(out)) == 2 * SEGMENT
    assert pool.in_flight == 0
    told = capsys.readouterr().err
    assert f"{3 * SEGMENT:,} of {5 * SEGMENT:,} passages are missing" in told
    assert "error: no node is left\n  a: refused" in told
    assert "ollama serve" in told


def test_a_segment_without_any_vector_ends_the_work(
    pool: type[StubPool], lines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.bad_texts = frozenset("x" * (i + 1) for i in range(SEGMENT))
    out = tmp_path / "out.npy"
    out.write_text("as it was")
    assert main(["embed", lines(9 * SEGMENT), "--passage-size=0", "--out", str(out)]) == 1
    assert len(pool.batches) <= embed.IN_FLIGHT
    assert out.read_text() == "as it was"
    told = capsys.readouterr().err
    assert "error: too odd" in told
    assert f"{out} was not written" in told


def test_nodes_reach_the_pool(pool: type[StubPool], lines: Any) -> None:
    assert main(["embed", lines(1)]) == 0
    assert list(pool.nodes.nodes) == ["http://127.0.0.1:11434"]
    assert main(["embed", lines(1), "--node", "127.0.0.1:1", "--node", "127.0.0.2"]) == 0
    assert list(pool.nodes.nodes) == ["http://127.0.0.1:1", "http://127.0.0.2:11434"]


def test_a_disk_that_is_full_is_a_failure(
    pool: type[StubPool], lines: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    stdout = io.TextIOWrapper(Full())
    monkeypatch.setattr("sys.stdout", stdout)
    assert main(["embed", lines(1)]) == 1
    assert "error: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--trace"])
def test_no_result_takes_the_place_of_an_input(
    option: str, pool: type[StubPool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "kept"}\n')
    arguments = ["embed", str(source), option, str(tmp_path / "." / "in.jsonl")]
    assert main(arguments) == 2
    assert "would overwrite the input" in capsys.readouterr().err
    assert source.read_text() == '{"text": "kept"}\n'
