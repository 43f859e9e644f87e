"""What chat and generate answer: Ollama's fields, as attributes and by key."""

from __future__ import annotations

import copy
import pickle

import pytest

from aiosollol.core.reply import ChatReply, GeneratedText, Record

CHAT = {
    "model": "tiny-chat",
    "message": {
        "role": "assistant",
        "content": "hello",
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
    },
    "done": True,
    "eval_count": 6,
}


def test_a_field_is_an_attribute_and_a_key() -> None:
    reply = ChatReply(CHAT)
    assert reply.model == reply["model"] == "tiny-chat"
    assert reply.message.content == reply["message"]["content"] == "hello"
    assert reply.message.tool_calls[0].function.name == "add"
    assert reply["message"]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


def test_it_is_a_mapping() -> None:
    reply = ChatReply(CHAT)
    assert (list(reply), len(reply)) == (list(CHAT), 4)
    assert reply == CHAT
    assert {**reply.message} == CHAT["message"]
    assert reply.get("context") is None
    assert repr(Record({"done": True})) == "Record({'done': True})"


def test_a_field_that_is_missing() -> None:
    reply = ChatReply(CHAT)
    with pytest.raises(AttributeError, match="no field 'context'"):
        _ = reply.context
    with pytest.raises(KeyError):
        reply["context"]
    assert not hasattr(reply, "model_dump")


TEXTS = [
    pytest.param(CHAT, "hello", id="a message"),
    pytest.param({"message": {"content": ""}}, "", id="an empty one"),
    pytest.param({"message": {"role": "assistant"}}, "", id="one without content"),
    pytest.param({"message": {"content": None}}, "", id="one with no content"),
    pytest.param({"message": "hello"}, "", id="a message that is no object"),
    pytest.param({"done": True}, "", id="no message"),
]


@pytest.mark.parametrize(("fields", "text"), TEXTS)
def test_the_text_of_a_chat_reply(fields: dict[str, object], text: str) -> None:
    assert str(ChatReply(fields)) == f"{ChatReply(fields)}" == text


def test_generated_text_is_a_string_that_knows_its_answer() -> None:
    text = GeneratedText.of({"response": "hello", "done": True, "context": [1, 2]})
    assert text == text.response == "hello"
    assert text.upper() == "HELLO"
    assert isinstance(text, str)
    assert type(text.response) is str
    assert (text.answer.done, text.answer.context) == (True, [1, 2])


@pytest.mark.parametrize("fields", [{"done": True}, {"response": None}, {"response": 3}])
def test_generated_text_without_text_is_empty(fields: dict[str, object]) -> None:
    assert GeneratedText.of(fields) == ""


@pytest.mark.parametrize("reply", [Record(CHAT), ChatReply(CHAT), GeneratedText.of(CHAT)])
def test_replies_can_be_copied_and_pickled(reply: Record | GeneratedText) -> None:
    for twin in (copy.copy(reply), copy.deepcopy(reply), pickle.loads(pickle.dumps(reply))):
        assert type(twin) is type(reply)
        assert twin == reply
        assert getattr(twin, "answer", None) == getattr(reply, "answer", None)
