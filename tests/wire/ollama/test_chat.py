"""Chat and generate from a client's side: messages as they are sent, answers as they come."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

import orjson
import project_paths
import pytest

from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.errors import (
    InvalidInput,
    NodeError,
    ProtocolError,
    RunnerFailed,
    ServerBusy,
    StreamCutOff,
)
from aiosollol.wire.ollama.chat import (
    cut_off,
    images_to_send,
    is_last,
    load_chat,
    load_text,
    messages_to_send,
    tools_to_send,
)
from aiosollol.wire.ollama.client import dump

CAPTURES = project_paths.CAPTURES
WORDS = " crew things festival victory festival victory"


def captured(name: str) -> list[bytes]:
    """The lines of a real answer; one that is not streamed has one."""
    body = json.loads((CAPTURES / f"{name}.json").read_text("utf-8"))["body"]
    return [line.encode() for line in body] if isinstance(body, list) else [orjson.dumps(body)]


class Pydantic:
    """Like the messages and tools of the official client."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def model_dump(self, *, exclude_none: bool = False) -> dict[str, Any]:
        return {k: v for k, v in self.fields.items() if v is not None or not exclude_none}


# Requests.

USER = {"role": "user", "content": "hello"}
MESSAGES = [
    pytest.param(None, [], id="none"),
    pytest.param([], [], id="an empty list, which loads the model"),
    pytest.param([USER], [USER], id="a dictionary"),
    pytest.param((USER, USER), [USER, USER], id="a tuple"),
    pytest.param(iter([USER]), [USER], id="an iterator"),
    pytest.param([MappingProxyType(USER)], [USER], id="a mapping"),
    pytest.param([ChatReply({"message": USER}).message], [USER], id="the message of a reply"),
    pytest.param([Pydantic(role="user", content="hello", images=None)], [USER], id="pydantic"),
    pytest.param([{"role": "narrator"}], [{"role": "narrator"}], id="a role that we do not know"),
    pytest.param(
        [{**USER, "images": [b"\xff\xd8", "/9g="]}],
        [{**USER, "images": ["/9g=", "/9g="]}],
        id="images",
    ),
    pytest.param([{**USER, "images": None}], [{**USER, "images": None}], id="no images"),
    pytest.param(
        [{"role": "assistant", "tool_calls": ({"function": MappingProxyType({"name": "f"})},)}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}],
        id="calls of tools",
    ),
]


@pytest.mark.parametrize(("messages", "sent"), MESSAGES)
def test_messages_are_sent_as_plain_json(messages: object, sent: list[dict[str, Any]]) -> None:
    plain = messages_to_send(messages)
    assert plain == sent
    assert orjson.loads(dump({"messages": plain})) == {"messages": sent}


def test_a_reply_can_be_sent_back() -> None:
    reply = ChatReply(
        {"message": {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}}
    )
    assert messages_to_send([reply.message]) == [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    ]


BAD_MESSAGES = [
    pytest.param("hello", 'a list like [{"role": "user"', id="a string"),
    pytest.param(USER, "not dict", id="one message without a list"),
    pytest.param(7, "not int", id="a number"),
    pytest.param([USER, "hello"], "message 1 must be a mapping, not str", id="a string in it"),
    pytest.param([USER, None], "message 1 must be a mapping, not NoneType", id="None in it"),
    pytest.param([{"content": "hello"}], "message 0 has no 'role'; give 'user'", id="no role"),
    pytest.param([{"role": None}], "message 0 has no 'role'", id="a role of None"),
    pytest.param([{**USER, "images": "x"}], "images must be a list", id="one image, no list"),
    pytest.param([{**USER, "images": [7]}], "image 0 must be bytes", id="an image of digits"),
]


@pytest.mark.parametrize(("messages", "problem"), BAD_MESSAGES)
def test_messages_that_are_none(messages: object, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        messages_to_send(messages)
    assert problem in str(caught.value)


@pytest.mark.parametrize("image", [b"\xff\xd8", bytearray(b"\xff\xd8"), memoryview(b"\xff\xd8")])
def test_an_image_may_be_any_bytes(image: object) -> None:
    assert images_to_send([image]) == images_to_send(("/9g=",)) == ["/9g="]


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "tools",
    [[TOOL], (TOOL,), [MappingProxyType(TOOL)], [Pydantic(**TOOL, strict=None)]],
    ids=["a list", "a tuple", "mappings", "pydantic"],
)
def test_tools_are_sent_as_plain_json(tools: object) -> None:
    assert tools_to_send(tools) == [TOOL]


def test_no_tools() -> None:
    assert tools_to_send(None) is None
    for wrong in ("f", TOOL, 7):
        with pytest.raises(InvalidInput, match="tools must be a list"):
            tools_to_send(wrong)


# Answers.


def test_a_real_chat_answer() -> None:
    reply = load_chat("n", captured("33-chat")[0])
    assert isinstance(reply, ChatReply)
    assert str(reply) == reply.message.content == WORDS
    assert (reply.done, reply.done_reason, reply.eval_count) == (True, "length", 6)
    assert is_last(reply)


def test_a_real_generated_text() -> None:
    text = load_text("n", captured("40-generate")[0])
    assert isinstance(text, GeneratedText)
    assert text == WORDS
    assert text.answer.done_reason == "length"
    assert text.answer.context[:3] == [353, 286, 350]
    assert is_last(text)


@pytest.mark.parametrize(
    ("name", "read"), [("34-chat-stream", load_chat), ("41-generate-stream", load_text)]
)
def test_a_real_stream(name: str, read: Any) -> None:
    parts = [read("n", line) for line in captured(name)]
    assert "".join(map(str, parts)) == WORDS
    assert [is_last(part) for part in parts] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize(
    ("name", "read", "reason"),
    [
        ("35-chat-empty-messages", load_chat, "load"),
        ("42-generate-empty-prompt-loads", load_text, "load"),
        ("43-generate-unload", load_text, "unload"),
    ],
)
def test_a_model_is_loaded_or_unloaded_without_words(name: str, read: Any, reason: str) -> None:
    part = read("n", captured(name)[0])
    assert (str(part), is_last(part)) == ("", True)
    assert getattr(part, "answer", part).done_reason == reason


ERROR_LINES: list[tuple[str, bytes, type[NodeError], str]] = [
    ("a dead runner", b'{"error":"unexpected EOF"}', RunnerFailed, "unexpected EOF"),
    ("out of memory", b'{"error":"out of memory"}', RunnerFailed, "out of memory"),
    ("busy", b'{"error":"server busy, please try again."}', ServerBusy, "server busy"),
    ("an error as an object", b'{"error":{"message":"oom"}}', RunnerFailed, "oom"),
    ("an error without words", b'{"error":{"code":7}}', RunnerFailed, '"code":7'),
    ("an error of null", b'{"error":null,"done":true}', RunnerFailed, '"error":null'),
    ("HTML", b"<html>", ProtocolError, "'<html>', which is not JSON"),
    ("a cut line", b'{"message":{"cont', ProtocolError, "not JSON"),
    ("no object", b"[1]", ProtocolError, "not a JSON object"),
]


@pytest.mark.parametrize("read", [load_chat, load_text])
@pytest.mark.parametrize(
    ("line", "kind", "shown"),
    [case[1:] for case in ERROR_LINES],
    ids=[case[0] for case in ERROR_LINES],
)
def test_an_error_in_the_middle_of_a_stream(
    read: Any, line: bytes, kind: type[NodeError], shown: str
) -> None:
    with pytest.raises(kind) as caught:
        read("gpu", line)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("gpu: ")
    assert shown in str(caught.value)


@pytest.mark.parametrize("line", [b"{}", b'{"done":false}', b'{"done":1}', b'{"done":"true"}'])
def test_only_done_true_is_the_end(line: bytes) -> None:
    assert not is_last(load_chat("n", line))
    assert not is_last(load_text("n", line))


def test_a_stream_that_ends_early_says_how_far_it_came() -> None:
    error = cut_off("gpu", 3)
    assert isinstance(error, StreamCutOff)
    assert error.delivered == 3
    assert str(error).startswith("gpu: the stream ended after 3 parts")
