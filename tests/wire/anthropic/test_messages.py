"""wire/anthropic: messages of Anthropic's API, as tables; answers equal to captured ones."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from message_parts import CALLED, USE, USER, read

from aiosollol.wire.anthropic import messages as anthropic
from aiosollol.wire.ollama.server_requests import Refusal

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


# ---- requests


@pytest.mark.parametrize(
    ("more", "payload"),
    [
        ({}, {}),
        ({"stream": True}, {"stream": True}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"think": True}),
        ({"thinking": {"type": "disabled"}}, {"think": False}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"output_config": {"effort": " xHigh"}}, {"think": "high"}),
        ({"output_config": {"effort": "max"}}, {"think": "max"}),
        ({"output_config": {"effort": "odd"}}, {}),
        ({"thinking": {"type": "enabled"}, "output_config": {"effort": "low"}}, {"think": True}),
        (
            {"tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "description": "d", "parameters": SCHEMA},
                    }
                ]
            },
        ),
        ({"tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "none"}}, {}),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]}, {}),
        ({"metadata": {"user_id": "u"}, "service_tier": "auto"}, {}),
    ],
)
def test_a_request(more: dict[str, Any], payload: dict[str, Any]) -> None:
    options = {"num_predict": 6}
    plain = {"model": "m", "messages": [USER], "stream": False, "options": options}
    asked = read(**more)
    assert asked.payload == {**plain, **payload}
    assert asked.can_drop_think


def test_a_tool_without_a_schema_takes_nothing() -> None:
    (tool,) = read(tools=[{"type": "bash_20250124", "name": "bash"}]).payload["tools"]
    assert tool["function"]["parameters"] == {"type": "object", "properties": {}}


def test_options() -> None:
    asked = read(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["a", "b"], max_tokens=7)
    assert asked.payload["options"] == {
        "num_predict": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("system", "content"),
    [
        ("be", "be"),
        ([{"type": "text", "text": "be"}, {"type": "text", "text": " good"}], "be good"),
        ([{"type": "image"}, {"type": "text", "text": "be", "cache_control": {}}], "be"),
    ],
)
def test_a_system_prompt(system: Any, content: str) -> None:
    messages = read(system=system).payload["messages"]
    assert messages == [{"role": "system", "content": content}, USER]
    assert read(system="").payload["messages"] == [USER]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "User", "content": "a"}, [{"role": "user", "content": "a"}]),
        ({"role": "user", "content": ""}, []),
        ({"role": "user", "content": []}, []),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE, IMAGE]},
            [{"role": "user", "content": "a", "images": ["AAAA", "AAAA"]}],
        ),
        (
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "a"},
                    {"type": "text", "text": "b"},
                    USE,
                ],
            },
            [{"role": "assistant", "content": "ab", "thinking": "hm", "tool_calls": [CALLED]}],
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "go on"},
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "4"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_2",
                        "is_error": True,
                        "content": [{"type": "text", "text": "no"}, IMAGE, {"type": "odd"}],
                    },
                    {"type": "tool_result"},
                ],
            },
            [
                {"role": "tool", "content": "4", "tool_call_id": "toolu_1"},
                {"role": "tool", "content": "no", "images": ["AAAA"], "tool_call_id": "toolu_2"},
                {"role": "tool", "content": ""},
                {"role": "user", "content": "go on"},
            ],
        ),
        (
            {
                "role": "assistant",
                "content": [
                    {**USE, "type": "server_tool_use"},
                    {
                        "type": "web_search_tool_result",
                        "tool_use_id": "toolu_1",
                        "content": [
                            {"type": "web_search_result", "title": "t", "url": "u"},
                            {"type": "odd"},
                        ],
                    },
                    {
                        "type": "web_search_tool_result",
                        "tool_use_id": "toolu_2",
                        "content": {"error_code": "unavailable"},
                    },
                ],
            },
            [
                {"role": "assistant", "content": "", "tool_calls": [CALLED]},
                {"role": "tool", "content": "- t: u\n", "tool_call_id": "toolu_1"},
                {
                    "role": "tool",
                    "content": "web_search_tool_result_error: unavailable",
                    "tool_call_id": "toolu_2",
                },
            ],
        ),
    ],
)
def test_messages(message: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert read(USER, message).payload["messages"] == [USER, *expected]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model": ""}, "model is required"),
        ({"max_tokens": 0}, "max_tokens is required and must be positive"),
        ({"max_tokens": None}, "max_tokens is required and must be positive"),
        ({"messages": []}, "messages is required"),
        ({"messages": [{"role": "user"}]}, "content is required: MessagesRequest.messages"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "json: cannot unmarshal number into Go struct field MessagesRequest.messages.content "
            "of type []struct",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "invalid image source"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{**IMAGE, "source": {"type": "url", "url": "u"}}]}
                ]
            },
            "invalid image source type: url. Only base64 images are supported.",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{**IMAGE, "source": {"type": "base64"}}, IMAGE]},
                    {
                        "role": "user",
                        "content": [{**IMAGE, "source": {"type": "base64", "data": "A"}}],
                    },
                ]
            },
            "invalid base64 image data",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{**USE, "id": ""}]}]},
            "tool_use block missing required 'id' field",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{**USE, "name": None}]}]},
            "tool_use block missing required 'name' field",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "content": [{"type": "image"}]}],
                    }
                ]
            },
            "invalid tool_result image source",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "document blocks are not supported: send their text instead",
        ),
        ({"tools": [{"input_schema": {}}]}, "a tool must have a name: MessagesRequest.tools"),
        (
            {"stop_sequences": "x"},
            "json: cannot unmarshal string into Go struct field MessagesRequest.stop_sequences "
            "of type []string",
        ),
    ],
)
def test_requests_that_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(**more)
    assert (caught.value.status, caught.value.message) == (400, words)
    answer = anthropic.refuse(caught.value, "1")
    assert answer.content_type == "application/json; charset=utf-8"
    assert orjson.loads(answer.body) == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": words},
        "request_id": "req_1",
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "authentication_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_kinds_of_errors(status: int, kind: str) -> None:
    answer = anthropic.refuse(Refusal(status, "no"), "1")
    assert (answer.status, answer.content_type) == (status, "application/json")
    assert orjson.loads(answer.body)["error"] == {"type": kind, "message": "no"}


@pytest.mark.parametrize(
    ("more", "estimate"),
    [
        ({}, 2),  # as in the capture: (len("user") + len("hello")) / 4
        ({"messages": [{"role": "", "content": ""}]}, 1),
        ({"system": "be good"}, 4),
        ({"messages": [{"role": "user", "content": "\N{GRINNING FACE}" * 10}]}, 11),
        ({"tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]}, 7),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}, 2),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "4"}]}]},
            10,
        ),
    ],
)
def test_about_how_many_tokens(more: dict[str, Any], estimate: int) -> None:
    assert read(**more).estimate == estimate
    body = {"model": "m", "messages": [USER], **more}  # without max_tokens
    assert anthropic.count_tokens(orjson.dumps(body)) == ("m", estimate)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"messages": [USER]}, "model is required"),
        ({"model": "m"}, "messages is required"),
        ({"model": "m", "messages": []}, "messages is required"),
        ({"model": "m", "messages": [USER], "tools": 5}, "cannot unmarshal"),
    ],
)
def test_what_cannot_be_counted(body: dict[str, Any], problem: str) -> None:
    with pytest.raises(Refusal, match=problem) as caught:
        anthropic.count_tokens(orjson.dumps(body))
    assert caught.value.status == 400
