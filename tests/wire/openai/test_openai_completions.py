"""wire/openai: completions and the list of models."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai_parts import STAMP, capture, chunks, done

from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.openai import chat as openai
from aiosollol.wire.translation import Stamp


def completion(**more: Any) -> openai.CompletionQuestion:
    return openai.read_completion(orjson.dumps({"model": "m", "prompt": "hello", **more}))


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
