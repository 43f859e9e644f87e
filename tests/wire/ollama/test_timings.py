"""Durations and token counts in answers: those of a real server, and implausible ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from project_paths import CAPTURES

from aiosollol.core.timings import ServerTimings
from aiosollol.live.relay import read_talk, read_vectors_of_one
from aiosollol.live.streaming import timings_of
from aiosollol.wire.ollama.chat import load_chat, load_text
from aiosollol.wire.ollama.embeddings import load_embeddings
from aiosollol.wire.ollama.timings import read_timings

CHAT = ServerTimings(9545748e-9, 760492e-9, 57, 1714000e-9, 6, 5540000e-9)
STREAM = ServerTimings(9943239e-9, 604169e-9, 57, 620000e-9, 6, 6285000e-9)
GENERATE = ServerTimings(7456228e-9, 718419e-9, 57, 1698000e-9, 6, 3434000e-9)
EMBED = ServerTimings(58597677e-9, 48898000e-9, 8)


def captured(name: str) -> Any:
    return json.loads((CAPTURES / f"{name}.json").read_text())["body"]


def body(name: str) -> bytes:
    return json.dumps(captured(name)).encode()


def test_whole_answers_of_a_real_server() -> None:
    assert timings_of(load_chat("n", body("33-chat"))) == pytest.approx(CHAT)
    assert timings_of(load_text("n", body("40-generate"))) == pytest.approx(GENERATE)
    assert read_talk("n", body("33-chat")).timings == pytest.approx(CHAT)
    assert read_talk("n", body("40-generate")).timings == pytest.approx(GENERATE)
    assert CHAT.waited == pytest.approx(0.001531256)


def test_only_the_last_part_of_a_stream_has_timings() -> None:
    *parts, last = [load_chat("n", line.encode()) for line in captured("34-chat-stream")]
    assert timings_of(last) == pytest.approx(STREAM)
    assert [timings_of(part) for part in parts] == [None] * 6


def test_only_the_native_endpoint_reports_timings_of_embeddings() -> None:
    assert load_embeddings("n", body("06-embed-list"), 2).timings == pytest.approx(EMBED)
    one = read_vectors_of_one("n", body("05-embed-string")).timings
    assert one is not None
    assert one.total > one.load > 0.0
    assert load_embeddings("n", body("26-v1-embeddings-base64"), 2).timings is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"total_duration": 0}, None),
        ({"total_duration": -5}, None),
        ({"total_duration": True}, None),
        ({"total_duration": 1.5}, None),
        ({"total_duration": "9"}, None),
        ({"total_duration": 10**30}, None),
        ({"total_duration": 10**9}, ServerTimings(1.0)),
        ({"total_duration": 10**9, "load_duration": 2 * 10**9}, ServerTimings(1.0)),
        ({"total_duration": 10**9, "eval_count": -1, "eval_duration": None}, ServerTimings(1.0)),
        ({"total_duration": 10**9, "eval_count": 10**12}, ServerTimings(1.0)),
        (
            {"total_duration": 10**9, "load_duration": 10**8, "eval_count": 3},
            ServerTimings(1.0, pytest.approx(0.1), output_tokens=3),
        ),
    ],
    ids=str,
)
def test_implausible_numbers_count_as_not_reported(
    fields: dict[str, Any], expected: ServerTimings | None
) -> None:
    assert read_timings(fields) == expected
