"""wire/anthropic: answers and streams of messages, equal to captured ones."""

from __future__ import annotations

import json
from typing import Any

import orjson
import project_paths
import pytest
from message_parts import CALLED, USE, read

from aiosollol.wire.anthropic import messages as anthropic
from aiosollol.wire.translation import Stamp

STAMP = Stamp("c8b761c066274eaa10c6739e", 0)


def capture(name: str) -> dict[str, Any]:
    path = project_paths.CAPTURES / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def said(content: str = "", **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **more}}


def done(reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"done": True, "done_reason": reason, "prompt_eval_count": 57, "eval_count": 6, **more}


def events(*parts: dict[str, Any], **more: Any) -> list[Any]:
    """The data of each event; their names are checked."""
    stream = read(stream=True, **more).events(STAMP)
    written = b"".join(map(stream.feed, parts)) + stream.finish()
    datas = []
    for event in written.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        datas.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {datas[-1]['type']}"
    return datas


# ---- answers


def test_the_answer_of_the_capture() -> None:
    reply = {**said(" july du paper roman orchestra william"), **done("length")}
    answer = read().answer({**reply, "model": "tiny-chat"}, STAMP)
    assert answer.body == orjson.dumps(capture("53-v1-messages")["body"])
    assert (answer.status, answer.content_type) == (200, "application/json")


def test_the_stream_of_the_capture() -> None:
    found = capture("54-v1-messages-stream")
    asked = anthropic.read_messages(orjson.dumps(found["request"]["body"]))
    stream = asked.events(Stamp("2d6215d8031df1abf7710009", 0))
    words = [" july", " minister", " north", " subject", " sign", " ones"]
    parts = [*map(said, words), {**said(), **done("length")}]
    written = b"".join(map(stream.feed, parts)) + stream.finish()
    assert written.decode() == "\n".join([*found["body"], ""])


@pytest.mark.parametrize(
    ("reply", "content", "reason"),
    [
        ({**said("a"), **done()}, [{"type": "text", "text": "a"}], "end_turn"),
        ({**said(), **done("length")}, [], "max_tokens"),
        ({**said(), **done("load")}, [], "stop_sequence"),
        ({**said(), **done("")}, [], None),
        (
            {
                **said("a", thinking="hm", tool_calls=[CALLED, {"function": {"name": "g"}}]),
                **done(),
            },
            [
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": "a"},
                USE,
                {
                    "type": "tool_use",
                    "id": "call_c8b761c066274eaa10c6739e_1",
                    "name": "g",
                    "input": {},
                },
            ],
            "tool_use",
        ),
    ],
)
def test_answers(reply: dict[str, Any], content: list[Any], reason: str | None) -> None:
    value = orjson.loads(read().answer(reply, STAMP).body)
    assert value["content"] == content
    assert value.get("stop_reason") == reason
    assert value["usage"] == {"input_tokens": 57, "output_tokens": 6}


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def text(index: int, *words: str) -> list[dict[str, Any]]:
    deltas = [{"type": "text_delta", "text": word} for word in words]
    return block(index, {"type": "text", "text": ""}, *deltas)


def thought(index: int, *words: str) -> list[dict[str, Any]]:
    deltas = [{"type": "thinking_delta", "thinking": word} for word in words]
    return block(index, {"type": "thinking", "thinking": ""}, *deltas)


def use(index: int, identity: str, name: str, arguments: str) -> list[dict[str, Any]]:
    start = {"type": "tool_use", "id": identity, "name": name, "input": {}}
    return block(index, start, {"type": "input_json_delta", "partial_json": arguments})


@pytest.mark.parametrize(
    ("parts", "blocks", "reason"),
    [
        ([done()], [], "end_turn"),
        ([said("a"), {**said("b"), **done()}], text(0, "a", "b"), "end_turn"),
        (
            [said(thinking="h"), said(thinking="m"), said("a"), done("length")],
            [*thought(0, "h", "m"), *text(1, "a")],
            "max_tokens",
        ),
        (
            [said("a", thinking="h"), said(thinking="m"), done()],
            [*thought(0, "h"), *text(1, "a"), *thought(2, "m")],
            "end_turn",
        ),
        (
            [
                said(thinking="h"),
                said(tool_calls=[CALLED]),
                said(tool_calls=[CALLED]),  # once is enough
                said("a", tool_calls=[{"function": {"name": "g"}}]),
                done(),
            ],
            [
                *thought(0, "h"),
                *use(1, "toolu_1", "f", '{"a":1}'),
                *text(2, "a"),
                *use(3, "call_c8b761c066274eaa10c6739e_1", "g", "{}"),
            ],
            "tool_use",
        ),
    ],
)
def test_streams(parts: list[dict[str, Any]], blocks: list[Any], reason: str) -> None:
    first, *middle, delta, last = events(*parts)
    assert first["message"]["model"] == "m"
    assert middle == blocks
    assert delta == {
        "type": "message_delta",
        "delta": {"stop_reason": reason},
        "usage": {"input_tokens": 57, "output_tokens": 6},
    }
    assert last == {"type": "message_stop"}


def test_the_true_count_is_told_first_if_it_is_known_first() -> None:
    first, *_ = events({**said("a"), **done()})
    assert first["message"]["usage"] == {"input_tokens": 57, "output_tokens": 0}


def test_an_error_in_mid_stream() -> None:
    last = events(said("a"), {"error": "gone"})[-1]
    assert last == {"type": "error", "error": {"type": "api_error", "message": "gone"}}
