"""wire/dialects: what holds for each API that the gateway speaks, whatever is asked or answered."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from compatible_questions import PATHS, SMALLEST, STAMP, question
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.reply import Record
from aiosollol.wire import compatible_apis, json_fields, translation
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.translation import Question

few = settings(max_examples=40, deadline=None)  # for each of four APIs; and machines are busy


def refusal(path: str, body: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        compatible_apis.READERS[path](body)
    return caught.value


def part(content: str = "", **message: Any) -> dict[str, Any]:
    """A part of a stream, of chat and generate at once."""
    said = {"role": "assistant", "content": content, **message}
    return {"model": "m", "created_at": "...", "message": said, "response": content, "done": False}


def last(content: str = "", reason: str = "stop", **message: Any) -> dict[str, Any]:
    end = {"done": True, "done_reason": reason, "prompt_eval_count": 57, "eval_count": 6}
    return {**part(content, **message), **end}


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"function": {"index": 0, "name": name, "arguments": arguments}, **more}


def lines(parts: list[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(part) + b"\n" for part in parts)


ALL_SORTS = [
    part("", thinking="hm"),
    part("", thinking=" so"),
    part("one"),
    part(' two\n\u2028 \N{GRINNING FACE} <b> \\ "'),
    part("three", thinking="late"),
    part("", tool_calls=[call("f", {"a": [1, {"b": None}]}, id="call_7"), call("g", {})]),
    part("", tool_calls=[call("h", {"z": "\n"})]),
    last(),
]


def stream(path: str, parts: list[dict[str, Any]], **more: Any) -> bytes:
    events = question(path, stream=True, **more).events(STAMP)
    return events.feed(lines(parts)) + events.finish()


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


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


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


texts = st.text(max_size=5)
numbers = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308])
any_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
# Objects with the names that mean something, and values of which some do.
NAMES = (
    "model messages stream role content type text image_url url input_audio data tool_calls id "
    "function name arguments tool_call_id reasoning effort reasoning_effort stop max_tokens n "
    "max_completion_tokens temperature top_p top_k seed frequency_penalty presence_penalty tools "
    "tool_choice response_format json_schema schema logprobs top_logprobs stream_options echo "
    "include_usage prompt suffix best_of input instructions output call_id encrypted_content text "
    "format parameters description strict truncation background max_output_tokens summary system "
    "source media_type thinking tool_use_id is_error input_schema stop_sequences output_config "
    "previous_response_id conversation"
)
WORDS = (
    "m user assistant tool system text image image_url input_audio tool_use tool_result thinking "
    "message function function_call function_call_output reasoning input_text output_text none "
    "input_image input_file base64 data:;base64,AAAA http://x json_object json_schema low enabled "
    'web_search document server_tool_use web_search_tool_result namespace {} {"a":1} AAAA'
)
names, words = st.sampled_from(NAMES.split()), st.sampled_from(WORDS.split())
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


# ---- streams


@pytest.mark.parametrize("path", PATHS)
@few
@given(cuts=st.lists(st.integers(0, 2000), max_size=30))
def test_any_cut_of_the_stream_gives_the_same_events(path: str, cuts: list[int]) -> None:
    whole = lines(ALL_SORTS)
    events = question(path, stream=True).events(STAMP)
    ends = [*sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = [whole[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert b"".join(map(events.feed, pieces)) == stream(path, ALL_SORTS)
    assert events.is_over


@pytest.mark.parametrize("path", PATHS)
def test_parts_may_come_read(path: str) -> None:
    for made in (dict, Record):
        events = question(path, stream=True).events(STAMP)
        fed = b"".join(events.feed(made(part)) for part in ALL_SORTS)
        assert fed == stream(path, ALL_SORTS)


@pytest.mark.parametrize("path", PATHS)
def test_the_last_line_need_not_end(path: str) -> None:
    events = question(path, stream=True).events(STAMP)
    written = events.feed(lines(ALL_SORTS)[:-1]) + events.finish()
    assert written == stream(path, ALL_SORTS)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_follows_the_end(path: str) -> None:
    events = question(path, stream=True).events(STAMP)
    written = events.feed(lines([part("a"), last(), part("b"), last()]))
    assert written == stream(path, [part("a"), last()])
    assert events.feed(part("c")) == events.finish() == events.fail("late") == b""


ERROR = b"llama runner process no longer running: 2 "


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("before", [[], [part("a")], [part("", thinking="hm")]])
@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (b'{"error":"%b"}\n' % ERROR, ERROR),
        (b'{"error":{"message":"odd"}}\n', b"odd"),
        (b"<html>\n", b"the node answered '<html>', which is not a JSON object"),
        (b"[]\n", b"the node answered '[]', which is not a JSON object"),
        (b'{"message":', b"the model's answer was cut off"),
        (b'{"done":false}', b"the model's answer was cut off"),
        (b"", b"the model's answer was cut off"),
    ],
)
def test_an_error_in_mid_stream_is_told_at_the_end(
    path: str, before: list[dict[str, Any]], spoiled: bytes, words: bytes
) -> None:
    events = question(path, stream=True).events(STAMP)
    written = events.feed(lines(before) + spoiled) + events.finish()
    *_, told = written[:-2].split(b"\n\n")
    assert words in told
    assert b"[DONE]" not in written
    assert b'"error"' in told
    assert events.is_over
    assert events.finish() == b""


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_what_cannot_be_written_is_an_error(path: str) -> None:
    deep = last(tool_calls=[call("f", nested(300))])
    events = question(path, stream=True).events(STAMP)
    assert b"the node's answer cannot be passed on: Recursion" in events.feed(deep)
    with pytest.raises(Refusal, match="cannot be passed on") as caught:
        question(path).answer(deep, STAMP)
    assert caught.value.status == 502


REPLY = "model message response done done_reason logprobs eval_count total_duration"


@pytest.mark.parametrize("path", PATHS)
@few
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(REPLY.split()),
            any_json
            | st.dictionaries(
                st.sampled_from(["role", "content", "thinking", "tool_calls"]),
                any_json | st.lists(st.fixed_dictionaries({"function": any_json}), max_size=3),
            ),
        ),
        max_size=4,
    )
)
def test_any_answer_is_passed_on_or_refused(path: str, parts: list[dict[str, Any]]) -> None:
    asked = question(path, stream=True)
    events = asked.events(STAMP)
    for answer in parts:
        events.feed(answer)
        try:
            written = asked.answer(answer, STAMP)
        except Refusal as refused:
            written = compatible_apis.refuse(path, refused, "1")
        assert orjson.loads(written.body)
        assert written.status in (200, 502)
    events.finish()


# ---- images


@pytest.mark.parametrize("kind", ["", "image/jpeg", "image/jpg", "image/png", "image/webp"])
def test_an_image_of_a_data_url(kind: str) -> None:
    assert translation.from_url(f"data:{kind};base64,AAAA") == "AAAA"
    assert translation.from_url(f"data:{kind};base64,AA\r\nAA") == "AAAA"


@pytest.mark.parametrize(
    "url",
    [
        "data:image/gif;base64,AAAA",
        "AAAA",
        "",
        "data:;base64,AAA",
        "data:;base64,ä",
        "data:;base64,A*==",
    ],
)
def test_what_is_no_image(url: str) -> None:
    with pytest.raises(Refusal, match=r"^invalid image input$"):
        translation.from_url(url)


def test_images_are_not_fetched() -> None:
    for url in ("http://127.0.0.1/x.png", "https://127.0.0.1/x.png"):
        with pytest.raises(Refusal, match="image URLs are not currently supported"):
            translation.from_url(url)


# ---- fields


@pytest.mark.parametrize(
    ("method", "value", "wrong"),
    [
        ("text", "a", "number into Go struct field T.x of type string"),
        ("boolean", True, "number into Go struct field T.x of type bool"),
        ("integer", 3, "number 1.5 into Go struct field T.x of type int"),
        ("mapping", {}, "number into Go struct field T.x of type map[string]interface {}"),
        ("inside", None, "number into Go struct field T.x of type struct"),
        ("each", [], "number into Go struct field T.x of type []struct"),
        ("texts", ["a"], "number into Go struct field T.x of type []string"),
    ],
)
def test_fields_have_types(method: str, value: Any, wrong: str) -> None:
    def read(given: Any) -> Any:
        return getattr(json_fields.Fields({"x": given}, "T"), method)("x")

    assert read(value) == value
    with pytest.raises(Refusal) as caught:
        read(1.5)
    assert caught.value.message == f"json: cannot unmarshal {wrong}"


@pytest.mark.parametrize(
    ("value", "number"), [(0, 0), (-1.5, -1.5), (2**70, float(2**70)), (None, None)]
)
def test_numbers(value: Any, number: float | None) -> None:
    assert json_fields.Fields({"x": value}, "T").number("x") == number


@pytest.mark.parametrize("value", [True, "1", 10**400, []])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(Refusal, match=r"Go struct field T\.x of type float64"):
        json_fields.Fields({"x": value}, "T").number("x")
