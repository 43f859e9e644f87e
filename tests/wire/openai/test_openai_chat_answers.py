"""wire/openai: answers and streams of chats, as tables; equal to captured ones."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai_parts import STAMP, capture, chat, chunks, done

from aiosollol.wire.openai import chat as openai
from aiosollol.wire.translation import Question, Stamp


def said(content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def deltas(asked: Question, *parts: dict[str, Any]) -> list[Any]:
    return [
        (chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"])
        for chunk in chunks(asked, *parts)
        if isinstance(chunk, dict) and chunk.get("choices")
    ]


# ---- answers to a chat


def test_the_answer_of_the_capture() -> None:
    reply = {
        **done("length"),
        "model": "tiny-chat",
        "message": said(" crew things festival victory festival victory"),
    }
    body = capture("47-v1-chat")["body"]
    assert chat().answer(reply, STAMP).body == orjson.dumps(body)


def test_the_stream_of_the_capture() -> None:
    asked = openai.read_chat(orjson.dumps(capture("48-v1-chat-stream")["request"]["body"]))
    events = asked.events(Stamp("942", 1_795_251_719))
    words = [" religious", " conditions", " god", " am", " time", " ministry"]
    head = {"model": "tiny-chat", "created_at": "2026-11-21T09:01:59.1Z"}
    parts = [{**head, "message": said(word), "done": False} for word in words]
    parts.append({**done("length"), **head, "message": said()})
    stream = b"".join(events.feed(orjson.dumps(part) + b"\n") for part in parts) + events.finish()
    assert stream.decode() == "\n".join([*capture("48-v1-chat-stream")["body"], ""])


LOGPROBS = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]
MADE = {"id": "call_7", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}
WRITTEN = {
    "id": "call_7",
    "index": 0,
    "type": "function",
    "function": {"name": "f", "arguments": '{"a":1}'},
}


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        (
            done(message=said("a", thinking="hm")),
            {"message": said("a", reasoning="hm"), "finish_reason": "stop"},
        ),
        (
            done(message=said(tool_calls=[MADE])),
            {"message": said(tool_calls=[WRITTEN]), "finish_reason": "tool_calls"},
        ),
        (
            done("length", message=said(tool_calls=[MADE])),
            {"message": said(tool_calls=[WRITTEN]), "finish_reason": "length"},
        ),
        (
            done("", message=said("a"), logprobs=LOGPROBS),
            {
                "message": said("a"),
                "finish_reason": None,
                "logprobs": {"content": LOGPROBS},
            },
        ),
        (
            done(message=said(tool_calls=[{"function": {"name": "f"}}])),
            {
                "message": said(
                    tool_calls=[
                        {
                            "id": "call_532_0",
                            "index": 0,
                            "type": "function",
                            "function": {"name": "f", "arguments": "{}"},
                        }
                    ]
                ),
                "finish_reason": "tool_calls",
            },
        ),
    ],
)
def test_answers(reply: dict[str, Any], choice: dict[str, Any]) -> None:
    (made,) = orjson.loads(chat().answer(reply, STAMP).body)["choices"]
    assert made == {"index": 0, **choice}
    assert list(made) == ["index", *choice]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([done(message=said())], [(said(), None), ({}, "stop")]),
        ([{"message": said("a")}, done()], [(said("a"), None), ({}, "stop")]),
        (
            [{"message": said("a")}, done(message=said("b"))],
            [(said("a"), None), ({"content": "b"}, None), ({}, "stop")],
        ),
        (
            [{"message": said(thinking="h")}, {"message": said(thinking="m")}, done()],
            [
                (said(reasoning="h"), None),
                ({"content": "", "reasoning": "m"}, None),
                ({}, "stop"),
            ],
        ),
        (
            [{"message": said("a", thinking="h")}, done("")],
            [
                ({"role": "assistant", "reasoning": "h"}, None),
                ({"content": "a"}, None),
                ({}, "stop"),
            ],
        ),
        (
            [
                {"message": said("a")},
                {"message": said(tool_calls=[MADE])},
                {"message": said(tool_calls=[{**MADE, "id": "call_8"}])},
                done(),
            ],
            [
                (said("a"), None),
                ({"content": "", "tool_calls": [WRITTEN]}, None),
                ({"content": "", "tool_calls": [{**WRITTEN, "id": "call_8", "index": 1}]}, None),
                ({}, "tool_calls"),
            ],
        ),
        ([{}, done("length")], [(said(), None), ({}, "length")]),
    ],
)
def test_streams(parts: list[dict[str, Any]], expected: list[Any]) -> None:
    assert deltas(chat(stream=True), *parts) == expected
    assert chunks(chat(stream=True), *parts)[-1] == "[DONE]"


def test_probabilities_in_a_stream() -> None:
    asked = chat(stream=True, logprobs=True)
    made = chunks(asked, {"message": said("a"), "logprobs": LOGPROBS}, done())
    assert made[0]["choices"][0]["logprobs"] == {"content": LOGPROBS}
    assert "logprobs" not in made[1]["choices"][0]


def test_usage_comes_only_if_asked_for() -> None:
    for more, count in (({}, 0), ({"stream_options": {"include_usage": True}}, 1)):
        made = chunks(chat(stream=True, **more), done())
        assert sum("usage" in chunk for chunk in made if isinstance(chunk, dict)) == count


def test_an_error_in_mid_stream() -> None:
    made = chunks(chat(stream=True), {"message": said("a")}, {"error": "gone"})
    error = {"message": "gone", "type": "api_error", "param": None, "code": None}
    assert made[1:] == [{"error": error}]
