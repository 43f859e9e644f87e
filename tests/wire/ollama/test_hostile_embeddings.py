"""Answers of embedding endpoints that are JSON and no vectors, or count what cannot be."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from aiosollol.errors import ProtocolError
from aiosollol.wire.ollama.embeddings import MOST_TOKENS, check_one, load_embeddings, longest_answer
from aiosollol.wire.translation import count_of


def entries(*places: Any) -> bytes:
    """An answer of /v1/embeddings whose vectors are 0, 1, 2, ... in this order of indices."""
    data = [
        {"embedding": [float(number)], **({} if place is ... else {"index": place})}
        for number, place in enumerate(places)
    ]
    return json.dumps({"data": data}).encode()


@pytest.mark.parametrize(
    ("places", "order"),
    [
        ((0, 1, 2), [0, 1, 2]),
        ((1, 0, 2), [1, 0, 2]),
        ((2, 0, 1), [1, 2, 0]),
        ((..., ..., ...), [0, 1, 2]),
        ((0, ..., 2), [0, 1, 2]),
        ((0, 0, 1), None),
        ((5, 3, 9), None),
        ((-1, 0, 1), None),
        ((0, 1, 1), None),
        ((1, 2, 3), None),
        ((2, 1, ...), None),
        ((1, 0, None), None),
        ((1, 0, "2"), None),
        ((1, 0, 2.5), None),
        ((True, False, 2), None),
        ((1, 0, [2]), None),
        ((1, 0, 10**300), None),
        ((1, 0, "9" * 5000), None),
    ],
)
def test_indices_are_a_permutation(places: tuple[Any, ...], order: list[int] | None) -> None:
    if order is not None:
        assert list(load_embeddings("n", entries(*places), 3).floats) == order
        return
    with pytest.raises(ProtocolError, match="index"):
        load_embeddings("n", entries(*places), 3)


COUNTS = [
    (7, 7),
    (0, 0),
    (MOST_TOKENS - 1, MOST_TOKENS - 1),
    (None, 0),
    ("7", 0),
    (1e300, 0),
    (-1, None),
    (-(2**62), None),
    (MOST_TOKENS, None),
    (10**18, None),
]


@pytest.mark.parametrize("form", ["native", "numbers", "base64"])
@pytest.mark.parametrize(("tokens", "counted"), COUNTS)
def test_token_counts_that_cannot_be(form: str, tokens: Any, counted: int | None) -> None:
    body = answer(form, [0.5], tokens)
    if counted is not None:
        assert load_embeddings("n", body, 1).tokens == counted
        return
    with pytest.raises(ProtocolError, match="counted"):
        load_embeddings("n", body, 1)


@pytest.mark.parametrize(("tokens", "counted"), COUNTS)
def test_token_counts_of_chats(tokens: Any, counted: int | None) -> None:
    assert count_of({"eval_count": tokens}, "eval_count") == (counted or 0)


def answer(form: str, vector: list[float], tokens: Any = 4) -> bytes:
    if form == "native":
        fields: dict[str, Any] = {"embeddings": [vector], "prompt_eval_count": tokens}
        return json.dumps(fields).encode()
    if form == "legacy":
        return json.dumps({"embedding": vector}).encode()
    given: Any = vector
    if form == "base64":
        given = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    data = [{"object": "embedding", "embedding": given, "index": 0}]
    fields = {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": tokens}}
    return json.dumps(fields, separators=(",", ":")).encode()


FORMS = ["native", "legacy", "numbers", "base64"]


@pytest.mark.parametrize("length", [1, 2, 8, 768])
@pytest.mark.parametrize("form", FORMS)
def test_the_length_of_one_vector(form: str, length: int) -> None:
    body = answer(form, [0.25] * length)
    spaced = body.replace(b",", b" ,\n ").replace(b"]}", b'] ,"more":[1,2,3]}')
    for each in (body, spaced):
        for due in (0, length):
            check_one("n", each, due)
        for due in (length + 1, length - 1):
            if due:
                with pytest.raises(ProtocolError, match=f"{length} numbers where {due} were due"):
                    check_one("n", each, due)


@pytest.mark.parametrize(
    "body",
    [
        b'{"embeddings":[[0.1,NaN]]}',
        b'{"embeddings":[[0.1,Infinity]]}',
        b'{"embeddings":[[0.1,null]]}',
        b'{"embeddings":[[0.1,true]]}',
        b'{"embeddings":[[0.1,false]]}',
        b'{"embeddings":[[0.1,"a"]]}',
        b'{"embeddings":[[0.1,[2]]]}',
        b'{"embeddings":[[0.1,{}],[1]]}',
        b'{"embeddings":[[0.1],[0.2]]}',
        b'{"embedding":[0.1,null]}',
        b'{"data":[{"embedding":[0.1],"index":0},{"embedding":[0.2],"index":1}]}',
        b'{"data":[{"embedding":"!!!!","index":0}]}',
        b'{"data":[{"embedding":"AAAA","index":0}]}',
        b'{"data":[{"embedding":"AADAfw==","index":0}]}',
    ],
)
def test_what_is_no_vector(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        check_one("n", body, 2)


@pytest.mark.parametrize("count", [1, 3, 1000])
@pytest.mark.parametrize("dim", [1, 768, 4096])
def test_every_answer_fits_that_the_request_could_need(count: int, dim: int) -> None:
    longest = json.dumps([-1.2345678901234567e-100] * dim, separators=(" , ", ":"))
    entry = len('{"object" : "embedding" , "embedding" :  , "index" : 100000} , ') + len(longest)
    assert count * entry < longest_answer(count, dim) < 2 * count * entry + 2**21
    assert longest_answer(count, 0) >= longest_answer(count, dim)
