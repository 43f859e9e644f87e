"""wire/openai_responses: OpenAI's newer API, as tables; answers equal to captured ones."""

from __future__ import annotations

import json
from typing import Any

import orjson
import project_paths
import pytest

from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.openai import responses
from aiosollol.wire.translation import Stamp

STAMP = Stamp("924287", 1_795_251_719)
USER = {"role": "user", "content": "hello"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
CALLED = {"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "4"}
RESULT = {"role": "tool", "content": "4", "tool_call_id": "c1"}
PIXEL = "data:image/png;base64,AAAA"


def capture(name: str) -> dict[str, Any]:
    path = project_paths.CAPTURES / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def read(given: Any = "hello", **more: Any) -> responses.ResponseQuestion:
    body = {"model": "m", "input": given, **more}
    return responses.read_responses(orjson.dumps(body))


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


# ---- requests


@pytest.mark.parametrize(
    ("more", "payload"),
    [
        ({}, {}),
        ({"stream": True}, {"stream": True}),
        ({"max_output_tokens": 6}, {"options": {"temperature": 1, "num_predict": 6}}),
        ({"temperature": 0, "top_p": 0.5}, {"options": {"temperature": 0, "top_p": 0.5}}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"think": "low"}),
        ({"reasoning": {"effort": "none"}}, {"think": False}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
            {"format": SCHEMA},
        ),
        ({"text": {"format": {"type": "text", "schema": SCHEMA}}}, {}),
        ({"text": {}, "store": True, "include": ["x"], "previous_response_id": None}, {}),
        (
            {"instructions": "be"},
            {"messages": [{"role": "system", "content": "be"}, USER]},
        ),
    ],
)
def test_a_request(more: dict[str, Any], payload: dict[str, Any]) -> None:
    plain = {"model": "m", "messages": [USER], "stream": False, "options": {"temperature": 1}}
    assert read(**more).payload == {**plain, **payload}


def offered(name: str, description: str = "", schema: Any = None) -> dict[str, Any]:
    parameters = schema or {"type": "object", "properties": {}}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


@pytest.mark.parametrize(
    ("tool", "made"),
    [
        (
            {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA},
            [offered("f", "d", SCHEMA)],
        ),
        ({"type": "custom", "name": "patch", "format": {}}, [offered("patch")]),
        ({"type": "web_search"}, []),
        (
            {
                "type": "namespace",
                "name": "crm",
                "tools": [
                    {"type": "function", "name": "find"},
                    {"type": "function", "name": "crm.add"},
                ],
            },
            [offered("crm.find"), offered("crm.add")],
        ),
    ],
)
def test_tools(tool: dict[str, Any], made: list[Any]) -> None:
    assert read(tools=[tool]).payload.get("tools", []) == made
    assert "tools" not in read(tools=[tool], tool_choice="none").payload


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ("", []),
        (None, []),
        ([], []),
        ([USER], [USER]),
        (
            [
                {
                    "type": "message",
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "what "},
                        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
                        {"type": "input_image", "file_id": "x"},
                        {"type": "output_text", "text": "is"},
                    ],
                }
            ],
            [{"role": "user", "content": "what is", "images": ["AAAA"]}],
        ),
        ([{"role": "user"}], [{"role": "user", "content": ""}]),
        (
            [USER, CALL, OUTPUT],
            [USER, {"role": "assistant", "content": "", "tool_calls": [CALLED]}, RESULT],
        ),
        (
            [CALL, {**CALL, "call_id": "c2", "arguments": ""}, OUTPUT],
            [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        CALLED,
                        {"id": "c2", "function": {"name": "f", "arguments": {}}},
                    ],
                },
                RESULT,
            ],
        ),
        (  # what is said between a call and its result goes with the call
            [
                {"type": "reasoning", "encrypted_content": "hm", "summary": []},
                {"role": "assistant", "content": "let me"},
                CALL,
                {"type": "reasoning", "encrypted_content": "so"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "output_text", "text": "see"},
                        {"type": "input_image", "image_url": PIXEL},
                    ],
                },
                OUTPUT,
            ],
            [
                {
                    "role": "assistant",
                    "content": "let me\nsee",
                    "thinking": "so",
                    "tool_calls": [CALLED],
                    "images": ["AAAA"],
                },
                RESULT,
            ],
        ),
        (  # but not with another's call
            [CALL, {"role": "assistant", "content": "a"}, {**OUTPUT, "call_id": "c2"}],
            [
                {"role": "assistant", "content": "", "tool_calls": [CALLED]},
                {"role": "assistant", "content": "a"},
                {**RESULT, "tool_call_id": "c2"},
            ],
        ),
        (
            [{"type": "reasoning", "encrypted_content": "hm"}, CALL],
            [{"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [CALLED]}],
        ),
        (
            [USER, {"type": "reasoning", "encrypted_content": "hm"}],
            [USER, {"role": "assistant", "content": "", "thinking": "hm"}],
        ),
        (
            [
                {**OUTPUT, "output": [{"type": "input_text", "text": "4"}]},
                {"type": "web_search_call"},
            ],
            [RESULT],
        ),
    ],
)
def test_input(given: Any, messages: list[dict[str, Any]]) -> None:
    assert read(given).payload["messages"] == messages


@pytest.mark.parametrize(
    ("given", "more", "words"),
    [
        (3, {}, "input must be a string or array: it is number"),
        (["a"], {}, "input[0]: cannot unmarshal string into an input item"),
        ([USER, {}], {}, "input[1]: input item missing required 'type' field"),
        ([{"type": "odd"}], {}, 'input[0]: unknown input item type: "odd"'),
        (
            [{"role": "user", "content": 3}],
            {},
            "input[0]: content must be a string or array: it is number",
        ),
        (
            [{"role": "user", "content": [3]}],
            {},
            "input[0]: content[0]: cannot unmarshal number into an input item",
        ),
        (
            [{"role": "user", "content": [{"type": "odd"}]}],
            {},
            "input[0]: content[0]: unknown content type: odd",
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}],
            {},
            "input[0]: content[0]: file inputs are not currently supported",
        ),
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            {},
            "input[0]: content[0]: invalid image input",
        ),
        (
            [{**CALL, "arguments": "{"}],
            {},
            "input[0]: failed to parse function call arguments",
        ),
        (
            "hello",
            {"previous_response_id": "resp_1"},
            "previous_response_id is not supported: send the whole conversation as input",
        ),
        (
            "hello",
            {"conversation": {"id": "c"}},
            "conversation is not supported: send the whole conversation as input",
        ),
        (
            "hello",
            {"max_output_tokens": "6"},
            "json: cannot unmarshal string into Go struct field ResponsesRequest.max_output_tokens "
            "of type int",
        ),
    ],
)
def test_requests_that_are_refused(given: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(given, **more)
    assert (caught.value.status, caught.value.message) == (400, words)
    assert caught.value.is_early


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
