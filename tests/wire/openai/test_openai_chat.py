"""wire/openai: chat and completions of OpenAI's API, as tables; answers equal to captured ones."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai_parts import USER, chat

from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.openai import chat as openai

PIXEL = "data:image/png;base64,AAAA"
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}


# ---- requests for a chat


@pytest.mark.parametrize(
    ("more", "payload"),
    [
        ({}, {}),
        ({"stream": True}, {"stream": True}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"format": "json"}),
        (
            {"response_format": {"type": " JSON_schema", "json_schema": {"schema": SCHEMA}}},
            {"format": SCHEMA},
        ),
        ({"response_format": {"type": "json_schema"}}, {}),
        ({"tools": [TOOL]}, {"tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "none"}, {}),
        ({"reasoning_effort": "high"}, {"think": "high"}),
        ({"reasoning_effort": "minimal"}, {"think": "low"}),
        ({"reasoning_effort": "xhigh"}, {"think": "max"}),
        ({"reasoning_effort": "none"}, {"think": False}),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, {"think": "low"}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"n": 1, "user": "u", "store": False, "nobody": {"knows": "this"}}, {}),
    ],
)
def test_a_chat(more: dict[str, Any], payload: dict[str, Any]) -> None:
    options = {"temperature": 1.0, "top_p": 1.0}
    plain = {"model": "m", "messages": [USER], "stream": False, "options": options}
    assert chat(**more).payload == {**plain, **payload}


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ({"max_tokens": 6}, {"num_predict": 6}),
        ({"max_completion_tokens": 7}, {"num_predict": 7}),
        ({"max_completion_tokens": 7, "max_tokens": 6}, {"num_predict": 7}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"seed": 1}, {"seed": 1}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
        (
            {"frequency_penalty": 0.1, "presence_penalty": -1},
            {"frequency_penalty": 0.1, "presence_penalty": -1},
        ),
        ({"max_tokens": None, "stop": None, "seed": None, "temperature": None}, {}),
    ],
)
def test_options_of_a_chat(more: dict[str, Any], options: dict[str, Any]) -> None:
    expected = {"temperature": 1.0, "top_p": 1.0, **options}
    assert chat(**more).payload["options"] == expected


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CALLED = {"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": ""}, [{"role": "user", "content": ""}]),
        ({"role": "user", "content": []}, []),
        (
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is"},
                    {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                    {"type": "image_url", "image_url": PIXEL},
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                ],
            },
            [
                {"role": "user", "content": "what is"},
                {"role": "user", "content": "", "images": ["AAAA"]},
                {"role": "user", "content": "", "images": ["AAAA"]},
                {"role": "user", "content": "", "images": ["AAAA"]},
            ],
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "hm"},
            [{"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [CALLED]}],
        ),
        (
            {"role": "assistant", "content": [], "tool_calls": [CALL]},
            [{"role": "assistant", "content": "", "tool_calls": [CALLED]}],
        ),
        (
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "tool_calls": [{"id": "c2", "function": {"name": "g", "arguments": ""}}],
            },
            [
                {"role": "assistant", "content": "a"},
                {
                    "role": "assistant",
                    "content": "b",
                    "tool_calls": [{"id": "c2", "function": {"name": "g", "arguments": {}}}],
                },
            ],
        ),
        (
            {"role": "tool", "tool_call_id": "c1", "content": "4", "name": "given"},
            [{"role": "tool", "content": "4", "tool_name": "given", "tool_call_id": "c1"}],
        ),
    ],
)
def test_messages(message: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert chat(USER, message).payload["messages"] == [USER, *expected]


@pytest.mark.parametrize("content", ["4", [{"type": "text", "text": "4"}]])
def test_the_result_of_a_tool_knows_its_call(content: Any) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    messages = chat(USER, call, {"role": "tool", "tool_call_id": "c1", "content": content})
    expected = {"role": "tool", "content": "4", "tool_name": "f", "tool_call_id": "c1"}
    assert messages.payload["messages"][2] == expected


def test_the_result_of_a_tool_may_have_images() -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": PIXEL}]
    messages = chat({"role": "tool", "content": parts}).payload["messages"]
    assert messages == [{"role": "tool", "content": "see", "images": ["AAAA"]}]


@pytest.mark.parametrize(
    ("messages", "more", "words"),
    [
        ([], {}, "[] is too short - 'messages'"),
        ([{"role": "user"}], {}, "invalid message content type: <nil>"),
        ([{"role": "user", "content": 3}], {}, "invalid message content type: float64"),
        ([{"role": "user", "content": True}], {}, "invalid message content type: bool"),
        (
            [{"role": "user", "content": {}}],
            {},
            "invalid message content type: map[string]interface {}",
        ),
        ([{"role": "user", "content": ["x"]}], {}, "invalid message format"),
        ([{"role": "user", "content": [{"type": "video"}]}], {}, "invalid message format"),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, "invalid message format"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "invalid message format"),
        (
            [{"role": "user", "content": [{"type": "input_audio"}]}],
            {},
            "invalid input_audio format",
        ),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
            {},
            "invalid input_audio format: missing data",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "http://a/b"}]}],
            {},
            "image URLs are not currently supported, please use base64 encoded data instead",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}],
            {},
            "invalid tool call arguments",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"arguments": "[]"}}]}],
            {},
            "invalid tool call arguments",
        ),
        (
            "hello",
            {},
            "json: cannot unmarshal string into Go struct field ChatCompletionRequest.messages "
            "of type []struct",
        ),
        (
            [{"role": 3, "content": ""}],
            {},
            "json: cannot unmarshal number into Go struct field "
            "ChatCompletionRequest.messages.role of type string",
        ),
        (
            [USER],
            {"max_tokens": 6.5},
            "json: cannot unmarshal number 6.5 into Go struct field "
            "ChatCompletionRequest.max_tokens of type int",
        ),
        ([USER], {"n": 2}, "only one choice per request is supported: 'n' must be 1"),
        (
            [USER],
            {"reasoning_effort": "hard"},
            'invalid reasoning value: "hard" (must be "minimal", "low", "medium", "high", "xhigh", '
            '"ultra", "max", or "none")',
        ),
        (
            [USER],
            {"response_format": {"type": "grammar"}},
            "Invalid value for 'response_format.type' = grammar. "
            "Supported values: ['text', 'json_object', 'json_schema'].",
        ),
        (
            [USER],
            {"tools": [{"type": "function"}]},
            "a tool must be a function with a name: ChatCompletionRequest.tools",
        ),
        (
            [USER],
            {"stop": ["a", 3]},
            "json: cannot unmarshal number into Go struct field ChatCompletionRequest.stop "
            "of type string",
        ),
    ],
)
def test_chats_that_are_refused(messages: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(Refusal) as caught:
        openai.read_chat(orjson.dumps({"model": "m", "messages": messages, **more}))
    assert (caught.value.status, caught.value.message) == (400, words)
    answer = openai.refuse(caught.value)
    assert answer.content_type == "application/json; charset=utf-8"
    error = {"message": words, "type": "invalid_request_error", "param": None, "code": None}
    assert orjson.loads(answer.body) == {"error": error}
