"""wire/dialects: what holds for each API that the gateway speaks, whatever is asked or answered."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from compatible_parts import any_json, few, names, nested, numbers, texts, words
from compatible_questions import PATHS, SMALLEST, STAMP, question
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.wire import compatible_apis
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.translation import Question


def refusal(path: str, body: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        compatible_apis.READERS[path](body)
    return caught.value


# ---- requests


@pytest.mark.parametrize("path", PATHS)
def test_the_smallest_request(path: str) -> None:
    made = question(path)
    assert (made.model, made.stream) == ("m", False)
    assert made.path == ("/api/generate" if path == "/v1/completions" else "/api/chat")
    assert orjson.loads(made.body) == made.payload
    assert question(path, stream=True).payload["stream"] is True
    assert "streamed" in repr(question(path, stream=True))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "EOF"),
        (b"{not json", "invalid character 'n' looking for beginning of object key string"),
        (b"[]", "cannot unmarshal array into Go value of type"),
        (b"3", "cannot unmarshal number into Go value of type"),
        (b'{"model":3}', "model of type string"),
        (b"[" * 10_000, "unexpected EOF"),
        (b"[" * 100_000, "invalid character '[' exceeded max depth"),
        (b'{"a":' * 3_000 + b"1" + b"}" * 3_000, "exceeded max depth"),
        (b'{"n":1e999}', "json: cannot unmarshal number 1e999 into Go value of type float64"),
        (b'{"n":%b} x' % (b"9" * 5_000), f"json: cannot unmarshal number {'9' * 40} into"),
    ],
)
def test_bad_bodies(path: str, body: bytes, words: str) -> None:
    refused = refusal(path, body)
    assert refused.status == 400
    assert words in refused.message
    assert refused.is_early


@pytest.mark.parametrize("path", PATHS)
def test_a_field_of_another_type(path: str) -> None:
    refused = refusal(path, orjson.dumps({**SMALLEST[path], "stream": "yes"}))
    assert "cannot unmarshal string into Go struct field" in refused.message
    assert refused.message.endswith("Request.stream of type bool")


@pytest.mark.parametrize("path", PATHS)
def test_a_request_without_a_model(path: str) -> None:
    body = orjson.dumps({**SMALLEST[path], "model": ""})
    assert (refusal(path, body).status, refusal(path, body).message) == (400, "model is required")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_what_can_be_read_and_not_written_is_refused(path: str) -> None:
    schema = nested(400)
    tool = {
        "/v1/chat/completions": {
            "type": "function",
            "function": {"name": "f", "parameters": schema},
        },
        "/v1/responses": {"type": "function", "name": "f", "parameters": schema},
        "/v1/messages": {"name": "f", "input_schema": schema},
    }[path]
    refused = refusal(path, json.dumps({**SMALLEST[path], "tools": [tool]}).encode())
    assert (refused.status, refused.message) == (
        400,
        "the request cannot be sent as JSON: Recursion limit reached",
    )


def test_lone_surrogates_are_replaced_as_go_does() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"\\ud83d!"}]}'
    made = compatible_apis.READERS["/v1/chat/completions"](body)
    assert made.payload["messages"] == [{"role": "user", "content": "\ufffd!"}]


likely: st.SearchStrategy[Any] = st.recursive(
    words | st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=8),
    max_leaves=25,
)
questions = st.dictionaries(names, likely, max_size=10)


def check_any_request(path: str, body: bytes) -> None:
    made: Question | Refusal
    try:
        made = compatible_apis.READERS[path](body)
    except Refusal as refused:
        made = refused
    if isinstance(made, Refusal):
        answer = compatible_apis.refuse(path, made, "1")
        assert (made.status, answer.status) == (400, 400)
        assert orjson.loads(answer.body)["error"]["message"] == made.message
    else:
        assert orjson.loads(made.body).keys() == made.payload.keys()
        made.answer({}, STAMP)
        made.events(STAMP).feed({})


@pytest.mark.parametrize("path", PATHS)
@few
@given(any_json | questions)
def test_any_json_is_read_or_refused(path: str, value: Any) -> None:
    check_any_request(path, json.dumps(value).encode())


@pytest.mark.parametrize("path", PATHS)
@few
@given(questions)
def test_any_field_may_be_anything(path: str, more: dict[str, Any]) -> None:
    check_any_request(path, json.dumps({**SMALLEST[path], **more}).encode())


@pytest.mark.parametrize("path", PATHS)
@few
@given(name=names, value=likely)
def test_one_field_may_be_anything(path: str, name: str, value: Any) -> None:
    check_any_request(path, json.dumps({**SMALLEST[path], name: value}).encode())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@few
@given(st.lists(st.dictionaries(names, likely, max_size=5), max_size=3))
def test_any_messages(path: str, messages: list[Any]) -> None:
    check_any_request(path, json.dumps({**SMALLEST[path], "messages": messages}).encode())


@few
@given(st.lists(st.dictionaries(names, likely, max_size=5), max_size=3))
def test_any_items(items: list[Any]) -> None:
    check_any_request("/v1/responses", json.dumps({"model": "m", "input": items}).encode())


# ---- errors


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/messages",
            b'{"type":"error","error":{"type":"not_found_error","message":"no"},'
            b'"request_id":"req_1"}',
        ),
        (
            "/v1/messages/count_tokens",
            b'{"type":"error","error":{"type":"not_found_error","message":"no"},'
            b'"request_id":"req_1"}',
        ),
        (
            "/v1/responses",
            b'{"error":{"message":"no","type":"not_found_error","param":null,"code":null}}',
        ),
        ("/api/chat", b'{"error":"no"}'),
    ],
)
def test_errors_in_each_form(path: str, body: bytes) -> None:
    answer = compatible_apis.refuse(path, Refusal(404, "no"), "1")
    assert (answer.status, answer.body) == (404, body)
