"""wire: streams, images and fields in each API that the gateway speaks."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from compatible_parts import any_json, few, nested
from compatible_questions import PATHS, STAMP, question
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.reply import Record
from aiosollol.wire import compatible_apis, json_fields, translation
from aiosollol.wire.ollama.server_requests import Refusal


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
