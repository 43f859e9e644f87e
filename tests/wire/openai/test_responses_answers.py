"""wire/openai: answers and streams of the responses API, equal to captured ones."""

from __future__ import annotations

import json
from typing import Any

import orjson
import project_paths
import pytest
from responses_parts import CALLED, SCHEMA, read

from aiosollol.wire.openai import responses
from aiosollol.wire.translation import Stamp

STAMP = Stamp("924287", 1_795_251_719)


def capture(name: str) -> dict[str, Any]:
    path = project_paths.CAPTURES / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def said(content: str = "", **more: Any) -> dict[str, Any]:
    return {"model": "m", "message": {"role": "assistant", "content": content, **more}}


def done(reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"done": True, "done_reason": reason, "prompt_eval_count": 57, "eval_count": 6, **more}


def events(*parts: dict[str, Any], **more: Any) -> list[Any]:
    """The data of each event; their names, numbers and order of keys are checked."""
    stream = read(stream=True, **more).events(STAMP)
    written = b"".join(map(stream.feed, parts)) + stream.finish()
    datas: list[Any] = []
    for event in written.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        made = json.loads(data.removeprefix("data: "))
        assert data == f"data: {orjson.dumps(made, option=orjson.OPT_SORT_KEYS).decode()}"
        assert name == f"event: {made.pop('type')}"
        assert made.pop("sequence_number") == len(datas)
        datas.append((name.removeprefix("event: response."), made))
    return datas


# ---- answers


def test_the_answer_of_the_capture() -> None:
    found = capture("52-v1-responses")
    asked = responses.read_responses(orjson.dumps(found["request"]["body"]))
    reply = {**said(" learning texas crime while join fort"), **done("length")}
    answer = asked.answer({**reply, "total_duration": 9_000_000}, STAMP)
    body = found["body"]
    body["output"][0]["id"] = "msg_924287"  # the server draws lots twice
    assert answer.body == orjson.dumps(body)


def test_when_it_was_completed() -> None:
    answer = read().answer({**said("a"), **done(total_duration=2_500_000_000)}, STAMP)
    made = orjson.loads(answer.body)
    assert (made["created_at"], made["completed_at"]) == (1_795_251_719, 1_795_251_721)


TEXT = {"type": "output_text", "text": "ab", "annotations": [], "logprobs": []}


def message_item(identity: str, text: str = "ab") -> dict[str, Any]:
    return {
        "id": identity,
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{**TEXT, "text": text}],
    }


def reasoning_item(identity: str, text: str) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text}],
        "encrypted_content": text,
    }


def call_item(identity: str, call_id: str = "c1", arguments: str = '{"a":1}') -> dict[str, Any]:
    return {
        "id": identity,
        "type": "function_call",
        "status": "completed",
        "call_id": call_id,
        "name": "f",
        "arguments": arguments,
    }


def test_thoughts_and_calls_in_an_answer() -> None:
    reply = {**said("unheard", thinking="hm", tool_calls=[CALLED, CALLED]), **done()}
    output = orjson.loads(read().answer(reply, STAMP).body)["output"]
    assert output == [
        reasoning_item("rs_924287", "hm"),
        call_item("fc_924287_0"),
        call_item("fc_924287_1"),
    ]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"instructions": "be"}, {"instructions": "be"}),
        ({"truncation": "auto"}, {"truncation": "auto"}),
        ({"temperature": 0.5, "top_p": 0.25}, {"temperature": 0.5, "top_p": 0.25}),
        ({"background": True}, {"background": True}),
        ({"reasoning": {"effort": "low"}}, {"reasoning": {"effort": "low"}}),
        (
            {"text": {"format": {"type": "json_schema", "schema": SCHEMA, "strict": True}}},
            {"text": {"format": {"type": "json_schema", "schema": SCHEMA, "strict": True}}},
        ),
        (
            {"tools": [{"type": "function", "name": "f", "strict": True, "description": "d"}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "name": "f",
                        "description": "d",
                        "strict": True,
                        "parameters": None,
                    }
                ]
            },
        ),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "x"}]}]},
            {
                "tools": [
                    {
                        "type": "namespace",
                        "name": "n",
                        "description": None,
                        "strict": None,
                        "parameters": None,
                        "tools": [
                            {
                                "type": "x",
                                "name": "",
                                "description": None,
                                "strict": None,
                                "parameters": None,
                            }
                        ],
                    }
                ]
            },
        ),
    ],
)
def test_what_an_answer_repeats(more: dict[str, Any], told: dict[str, Any]) -> None:
    plain = orjson.loads(read().answer({**said("a"), **done()}, STAMP).body)
    made = orjson.loads(read(**more).answer({**said("a"), **done()}, STAMP).body)
    assert made == {**plain, **told}
    assert list(made) == list(plain)


# ---- streams


def test_a_stream_of_text() -> None:
    first, second, *middle, last = events(said("a"), said("b"), {**said(), **done()})
    assert (first[0], second[0]) == ("created", "in_progress")
    assert first[1] == second[1]
    assert first[1]["response"]["status"] == "in_progress"
    assert (first[1]["response"]["output"], first[1]["response"]["usage"]) == ([], None)
    place = {"item_id": "msg_924287", "output_index": 0, "content_index": 0}
    begun = {**message_item("msg_924287"), "status": "in_progress", "content": []}
    assert middle == [
        ("output_item.added", {"output_index": 0, "item": begun}),
        ("content_part.added", {**place, "part": {**TEXT, "text": ""}}),
        ("output_text.delta", {**place, "delta": "a", "logprobs": []}),
        ("output_text.delta", {**place, "delta": "b", "logprobs": []}),
        ("output_text.done", {**place, "text": "ab", "logprobs": []}),
        ("content_part.done", {**place, "part": TEXT}),
        ("output_item.done", {"output_index": 0, "item": message_item("msg_924287")}),
    ]
    whole = read().answer({**said("ab"), **done()}, STAMP)
    assert last == ("completed", {"response": orjson.loads(whole.body)})


def test_a_stream_of_thoughts_and_calls() -> None:
    made = events(
        said(thinking="h"),
        said(thinking="m"),
        said("a"),
        said("b", tool_calls=[CALLED]),
        said("unheard", tool_calls=[{**CALLED, "id": ""}]),
        done(),
    )
    items = [
        reasoning_item("rs_924287", "hm"),
        call_item("fc_924287_2"),
        call_item("fc_924287_3", "call_924287_1"),
    ]
    message = message_item("msg_924287_1", "a")
    assert [data["item"] for name, data in made if name == "output_item.done"] == [
        items[0],
        message,
        *items[1:],
    ]
    place = {"item_id": "rs_924287", "output_index": 0, "summary_index": 0}
    assert made[2:7] == [
        (
            "output_item.added",
            {
                "output_index": 0,
                "item": {"id": "rs_924287", "type": "reasoning", "summary": []},
            },
        ),
        ("reasoning_summary_text.delta", {**place, "delta": "h"}),
        ("reasoning_summary_text.delta", {**place, "delta": "m"}),
        ("reasoning_summary_text.done", {**place, "text": "hm"}),
        ("output_item.done", {"output_index": 0, "item": items[0]}),
    ]
    place = {"item_id": "fc_924287_2", "output_index": 2}
    begun = {**items[1], "status": "in_progress", "arguments": ""}
    at = made.index(("output_item.added", {"output_index": 2, "item": begun}))
    assert made[at + 1 : at + 4] == [
        ("function_call_arguments.delta", {**place, "delta": '{"a":1}'}),
        ("function_call_arguments.done", {**place, "arguments": '{"a":1}'}),
        ("output_item.done", {"output_index": 2, "item": items[1]}),
    ]
    name, last = made[-1]
    assert name == "completed"
    assert last["response"]["output"] == [items[0], message, *items[1:]]


@pytest.mark.parametrize(
    ("before", "output"), [([], 0), ([said("a")], 0), ([said(thinking="a")], 0)]
)
def test_an_error_in_mid_stream(before: list[dict[str, Any]], output: int) -> None:
    made = events(*before, {"error": "gone"})
    assert [name for name, _ in made[:2]] == ["created", "in_progress"]
    name, last = made[-1]
    assert name == "failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "gone"}
    assert len(last["response"]["output"]) == output
