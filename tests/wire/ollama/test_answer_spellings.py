"""A whole answer is what its JSON says, however a node spells it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spellings import BOM, KEYS, LAST, VALUES, WRITERS, compact, every_spelling, part

from aiosollol.errors import BadRequest, ProtocolError, RunnerFailed
from aiosollol.live.relay import (
    Relayed,
    read_talk,
    read_vector,
    read_vectors_of_one,
)
from aiosollol.wire.ollama.client import (
    load_tags,
    load_version,
    loads,
    outline,
)

NUMBERS = [index / 7 for index in range(300)]
TEXT = "A" * 2000
EMBEDDED: dict[str, tuple[Callable[[str, bytes], Relayed], dict[str, Any]]] = {
    "/api/embed": (read_vectors_of_one, {"model": "m[1]", "embeddings": [[0.5, 1.5]]}),
    "/api/embed, long": (
        read_vectors_of_one,
        {"model": "m", "embeddings": [NUMBERS], "prompt_eval_count": 7},
    ),
    "/api/embed, brackets": (
        read_vectors_of_one,
        {"model": "m[", "embeddings": [NUMBERS], "note": "[1,2]", "prompt_eval_count": 7},
    ),
    "/api/embeddings": (read_vector, {"embedding": NUMBERS}),
    "/api/embeddings of nothing": (read_vector, {"embedding": []}),
    "/v1, numbers": (
        read_vector,
        {
            "data": [{"object": "embedding", "embedding": NUMBERS, "index": 0}],
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        },
    ),
    "/v1, base64": (
        read_vector,
        {
            "object": "list",
            "data": [{"object": "embedding", "embedding": TEXT, "index": 0}],
            "model": "m",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        },
    ),
}
TALKED = {
    "chat": {**LAST, **part("hello"), "done": True},
    "a long chat": {**LAST, **part('[1,2] "done": ' * 200), "done": True},
    "generated": {**LAST, "response": "hello", "context": list(range(500))},
    "a load": {"model": "m", "done": True, "done_reason": "load"},
}
WHOLE = {
    **{name: (read_talk, answer) for name, answer in TALKED.items()},
    **EMBEDDED,
}
every_whole = pytest.mark.parametrize(("read", "answer"), WHOLE.values(), ids=WHOLE)
AROUND = {"": "{}", "line ends": "\n{}\r\n", "a byte order mark": BOM + "{}\n"}


@every_spelling
@every_whole
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_sound_answer_is_passed_on(
    read: Callable[[str, bytes], Relayed], answer: dict[str, Any], write: str, around: str
) -> None:
    body = around.replace("{}", WRITERS[write](answer)).encode()
    relayed = read("node", body)
    assert relayed.body == body.removeprefix(BOM.encode())
    usage: dict[str, int] = answer.get("usage", answer)
    names = ("prompt_eval_count", "eval_count", "prompt_tokens")
    assert relayed.tokens == sum(usage.get(name, 0) for name in names)


@every_spelling
@every_whole
@pytest.mark.parametrize("is_first", [False, True])
def test_an_error_in_an_answer_is_found(
    read: Callable[[str, bytes], Relayed], answer: dict[str, Any], write: str, is_first: bool
) -> None:
    error = {"error": 'no such "embedding", and no "done":true'}
    both = {**error, **answer} if is_first else {**answer, **error}
    for body in (both, error, {"error": error}, {**answer, "error": [{"error": 1}]}):
        with pytest.raises((RunnerFailed, BadRequest)):
            read("node", WRITERS[write](body).encode())


@every_spelling
@every_whole
def test_half_an_answer_is_none(
    read: Callable[[str, bytes], Relayed], answer: dict[str, Any], write: str
) -> None:
    body = WRITERS[write](answer).rstrip().encode()
    for end in (1, 2, len(body) // 2, len(body) - 1):
        with pytest.raises(ProtocolError):
            read("node", body[:-end])


@every_spelling
@pytest.mark.parametrize(
    "vectors",
    [[], [[]], [NUMBERS, NUMBERS], [NUMBERS, []], [[], NUMBERS], None, {}, "[[1]]", 1],
    ids=repr,
)
def test_one_text_has_one_vector_however_it_is_written(write: str, vectors: Any) -> None:
    body = WRITERS[write]({"model": '"embeddings":[[1]]', "embeddings": vectors})
    with pytest.raises(ProtocolError, match="not the vector of one text"):
        read_vectors_of_one("node", body.encode())


@every_spelling
@pytest.mark.parametrize("answer", [{"model": "embedding"}, {"data": []}, {"data": [1]}, LAST])
def test_an_answer_without_vectors(write: str, answer: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="no embeddings"):
        read_vector("node", WRITERS[write](answer).encode())


@pytest.mark.parametrize("count", [-5, 10**9, 1.5, "7", None, [7]])
def test_a_count_that_cannot_be_is_none(count: Any) -> None:
    for name in ("prompt_eval_count", "eval_count"):
        body = compact({**LAST, "prompt_eval_count": 0, "eval_count": 0, name: count})
        assert read_talk("node", body.encode()).tokens == 0


def shape(value: Any) -> Any:
    """A value with all its keys, but without its texts and all but the first number of lists."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        shapes = [shape(each) for each in value]
        has_more = any(
            isinstance(each, list) or (each and isinstance(each, dict)) for each in value
        )
        return shapes if has_more else shapes[:1]
    return "a text" if isinstance(value, str) else value


LONG = st.sampled_from(
    [NUMBERS, TEXT, "[" + "1," * 600 + "]", [NUMBERS] * 2, 'x"embedding":"' * 99]
)
FIELDS = st.dictionaries(
    KEYS | st.sampled_from(["embedding", "embeddings", "data", "context", 'an "embedding']),
    VALUES | LONG | st.lists(st.fixed_dictionaries({"embedding": LONG}), max_size=2),
    max_size=5,
)


@settings(deadline=None, max_examples=200)
@given(FIELDS, st.sampled_from(sorted(WRITERS)))
def test_an_outline_has_the_same_keys(fields: dict[str, Any], write: str) -> None:
    body = WRITERS[write](fields).encode()
    outlined = json.loads(outline(body))
    assert list(outlined) == list(json.loads(body))
    assert shape(outlined) == shape(json.loads(body))


@pytest.mark.parametrize(
    "answer",
    [
        TALKED["generated"],
        *(EMBEDDED[name][1] for name in ("/api/embed, long", "/v1, numbers", "/v1, base64")),
        {"embeddings": [NUMBERS, NUMBERS]},
    ],
)
def test_an_outline_is_short(answer: dict[str, Any]) -> None:
    body = compact(answer).encode()
    assert len(outline(body)) < 0.6 * len(body)


def test_a_byte_order_mark_is_passed_over() -> None:
    mark = BOM.encode()
    assert loads(mark + b"{}") == {}
    assert load_version("n", mark + b'{"version": "0.1"}') == "0.1"
    assert list(load_tags("n", mark + b'{"models": [{"name": "m"}]}')) == ["m:latest"]
    for body in (mark, mark + mark + b"{}", mark[:2] + b"{}", b"{}" + mark):
        with pytest.raises(ValueError, match=r"\w"):
            loads(body)
