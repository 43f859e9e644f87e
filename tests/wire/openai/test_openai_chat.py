"""wire/openai: chat and completions of OpenAI's API, as tables; answers equal to captured ones."""

from __future__ import annotations

import json
from typing import Any

import orjson
import project_paths
import pytest

from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.openai import chat as openai
from aiosollol.wire.translation import Question, Stamp

STAMP = Stamp("532", 1_795_251_719)
USER = {"role": "user", "content": "hello"}
PIXEL = "data:image/png;base64,AAAA"
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}


def capture(name: str) -> dict[str, Any]:
    path = project_paths.CAPTURES / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def chat(*messages: dict[str, Any], **more: Any) -> openai.ChatQuestion:
    return openai.read_chat(orjson.dumps({"model": "m", "messages": messages or [USER], **more}))


def completion(**more: Any) -> openai.CompletionQuestion:
    return openai.read_completion(orjson.dumps({"model": "m", "prompt": "hello", **more}))


def done(reason: str = "stop", **more: Any) -> dict[str, Any]:
    counts = {"prompt_eval_count": 57, "eval_count": 6}
    return {"model": "m", "done": True, "done_reason": reason, **counts, **more}


def said(content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def chunks(asked: Question, *parts: dict[str, Any]) -> list[Any]:
    events = asked.events(STAMP)
    stream = b"".join(map(events.feed, parts)) + events.finish()
    datas = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n")[:-1]]
    return [data.decode() if data == b"[DONE]" else orjson.loads(data) for data in datas]


def deltas(asked: Question, *parts: dict[str, Any]) -> list[Any]:
    return [
        (chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"])
        for chunk in chunks(asked, *parts)
        if isinstance(chunk, dict) and chunk.get("choices")
    ]


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


# ---- completions


@pytest.mark.parametrize(
    ("more", "payload", "options"),
    [
        ({}, {}, {}),
        ({"prompt": ["hello"]}, {}, {}),
        ({"suffix": "end"}, {"suffix": "end"}, {}),
        ({"max_tokens": 6, "stop": "x"}, {}, {"num_predict": 6, "stop": ["x"]}),
        ({"temperature": 0.5, "top_p": 0.1}, {}, {"temperature": 0.5, "top_p": 0.1}),
        ({"logprobs": 2}, {"logprobs": True, "top_logprobs": 2}, {}),
        ({"logprobs": 0, "best_of": 1, "n": 1}, {}, {}),
        ({"presence_penalty": 1.5}, {}, {"presence_penalty": 1.5}),
        ({"stream": True}, {"stream": True}, {}),
    ],
)
def test_a_completion(
    more: dict[str, Any], payload: dict[str, Any], options: dict[str, Any]
) -> None:
    defaults = {"temperature": 1.0, "frequency_penalty": 0, "presence_penalty": 0, "top_p": 1.0}
    plain = {"model": "m", "prompt": "hello", "stream": False}
    assert completion(**more).payload == {**plain, **payload, "options": {**defaults, **options}}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"prompt": ["a", "b"]}, "only one prompt per request is supported, 'prompt' has several"),
        (
            {"prompt": [1, 2]},
            "json: cannot unmarshal array into Go struct field CompletionRequest.prompt "
            "of type string",
        ),
        ({"best_of": 2}, "only one choice per request is supported: 'best_of' must be 1"),
        ({"n": 3}, "only one choice per request is supported: 'n' must be 1"),
    ],
)
def test_completions_that_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(Refusal) as caught:
        completion(**more)
    assert (caught.value.status, caught.value.message) == (400, words)


def test_the_completion_of_the_capture() -> None:
    text = " all architecture turned football writing formerly"
    reply = {**done("length"), "model": "tiny-chat", "response": text}
    answer = completion().answer(reply, Stamp("261", 1_795_251_719))
    assert answer.body == orjson.dumps(capture("51-v1-completions")["body"])


def test_a_stream_of_a_completion() -> None:
    usage = {"prompt_tokens": 57, "completion_tokens": 6, "total_tokens": 63}
    asked = completion(stream=True, stream_options={"include_usage": True})
    first, last, spent, end = chunks(
        asked, {"model": "m", "response": "a", "done": False}, done("length", response="")
    )
    head = {"id": "cmpl-532", "object": "text_completion", "created": STAMP.created}
    tail = {"model": "m", "system_fingerprint": "fp_ollama"}
    nothing = dict.fromkeys(usage, 0)
    choice = {"text": "a", "index": 0, "finish_reason": None}
    assert first == {**head, "choices": [choice], **tail, "usage": nothing}
    assert list(first) == [*head, "choices", *tail, "usage"]
    choice = {"text": "", "index": 0, "finish_reason": "length"}
    assert last == {**head, "choices": [choice], **tail, "usage": nothing}
    assert spent == {**head, "choices": [], **tail, "usage": usage}
    assert end == "[DONE]"
    assert "usage" not in chunks(completion(stream=True), done(response=""))[0]


def test_echo() -> None:
    asked = completion(echo=True)
    answer = orjson.loads(asked.answer(done(response=" you"), STAMP).body)
    assert answer["choices"][0]["text"] == "hello you"
    made = chunks(completion(echo=True, stream=True), {"response": " you"}, done())
    assert [chunk["choices"][0]["text"] for chunk in made[:-1]] == ["hello you", ""]


# ---- models


def test_the_models_of_the_capture() -> None:
    entries = capture("03-tags")["body"]["models"]
    assert openai.models(entries).body == orjson.dumps(capture("44-v1-models")["body"])
    answer = openai.model("all-minilm", {"modified_at": "2026-11-21T08:05:54.07587434Z"})
    assert answer.body == orjson.dumps(capture("45-v1-model")["body"])


@pytest.mark.parametrize(
    ("name", "modified_at", "created", "owner"),
    [
        ("m:1b", "1970-01-01T01:00:01.5+01:00", 1, "library"),
        ("me/m", "1970-01-01T00:00:02", 2, "me"),
        ("hf.co/org/m:Q4", "soon", 0, "org"),
        ("m", None, 0, "library"),
        ("m", "0001-01-01T00:00:00Z", -62_135_596_800, "library"),
    ],
)
def test_a_model(name: str, modified_at: Any, created: int, owner: str) -> None:
    answer = orjson.loads(openai.model(name, {"modified_at": modified_at}).body)
    assert answer == {"id": name, "object": "model", "created": created, "owned_by": owner}
