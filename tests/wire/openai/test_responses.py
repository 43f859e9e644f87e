"""wire/openai_responses: OpenAI's newer API, as tables; answers equal to captured ones."""

from __future__ import annotations

from typing import Any

import pytest
from responses_parts import CALLED, SCHEMA, read

from aiosollol.wire.ollama.server_requests import Refusal

USER = {"role": "user", "content": "hello"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "4"}
RESULT = {"role": "tool", "content": "4", "tool_call_id": "c1"}
PIXEL = "data:image/png;base64,AAAA"


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
