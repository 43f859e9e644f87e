"""Ollama's API from a client's side: what a real server answered, and what a broken one may.

tests/captures holds requests and the answers of a real server; `captured` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ollama_client_parts import HTML, captured

from aiosollol.core.request import EmbedSettings
from aiosollol.errors import (
    InvalidInput,
    ProtocolError,
)
from aiosollol.wire.ollama.client import (
    dump,
)
from aiosollol.wire.ollama.embeddings import dump_embed, load_embeddings

# Requests.


def test_only_what_was_given_is_sent() -> None:
    body = dump_embed(EmbedSettings(model="m"), ["a", ""])
    assert orjson.loads(body) == {"model": "m", "input": ["a", ""], "encoding_format": "base64"}


def test_every_setting_is_sent_by_its_name() -> None:
    settings = EmbedSettings(
        model="m", dimensions=8, truncate=False, options={"num_ctx": 512}, keep_alive="5m"
    )
    assert orjson.loads(dump_embed(settings, ["a"])) == {
        "model": "m",
        "input": ["a"],
        "dimensions": 8,
        "truncate": False,
        "options": {"num_ctx": 512},
        "keep_alive": "5m",
    }


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_arrives_as_it_is(texts: list[str]) -> None:
    assert orjson.loads(dump_embed(EmbedSettings(model="m"), texts))["input"] == texts


def test_any_mapping_is_an_object() -> None:
    inner: Mapping[str, Any] = MappingProxyType({"a": MappingProxyType({"b": (1, 2)})})
    assert orjson.loads(dump({"options": inner})) == {"options": {"a": {"b": [1, 2]}}}


UNSENDABLE = [
    pytest.param("\ud800", "surrogates", id="a lone surrogate"),
    pytest.param({"x": object()}, "not JSON serializable: object", id="an object"),
    pytest.param({1: 2}, "must be str", id="a key that is no string"),
    pytest.param(2**80, "64-bit", id="a number too large"),
]


@pytest.mark.parametrize(("value", "problem"), UNSENDABLE)
def test_what_json_cannot_carry(value: object, problem: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be sent as JSON") as caught:
        dump({"options": value})
    assert problem in str(caught.value)


# Vectors.

EMBEDDED = [
    pytest.param("05-embed-string", 384, 4, id="a string"),
    pytest.param("06-embed-list", 384, 8, id="a list"),
    pytest.param("07-embed-dimensions", 8, 4, id="dimensions"),
    pytest.param("10-embed-two-empty-strings-dim4", 4, 4, id="empty texts"),
    pytest.param("17-embed-too-long-truncated-dim4", 4, 515, id="a text that was cut"),
]


@pytest.mark.parametrize(("name", "dim", "tokens"), EMBEDDED)
def test_real_vectors(name: str, dim: int, tokens: int) -> None:
    _, body, request = captured(name)
    texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
    answer = load_embeddings("n", body, len(texts))
    assert (answer.count, answer.dim, answer.tokens) == (len(texts), dim, tokens)
    expected = [number for vector in orjson.loads(body)["embeddings"] for number in vector]
    assert answer.floats.format == "f"
    assert answer.floats.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "name", ["08-embed-empty-list", "09-embed-empty-string", "11-embed-no-input"]
)
def test_no_vectors_for_no_texts(name: str) -> None:
    answer = load_embeddings("n", captured(name)[1], 0)
    assert (answer.count, answer.dim, len(answer.floats)) == (0, 0, 0)


@settings(deadline=None)
@given(st.integers(1, 4), st.data())
def test_floats_arrive_to_the_last_bit(dim: int, data: st.DataObject) -> None:
    floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
    vectors = data.draw(st.lists(st.lists(floats, min_size=dim, max_size=dim), min_size=1))
    answer = load_embeddings("n", orjson.dumps({"embeddings": vectors}), len(vectors))
    assert answer.floats.tolist() == [number for vector in vectors for number in vector]


WHOLE = [
    pytest.param(b'{"embeddings":[[1,0]]}', id="whole numbers"),
    pytest.param(b'{"model":"[tft]","embeddings":[[1.0,0]],"x":[true]}', id="letters around"),
    pytest.param(b'{"embeddings":[[1e0,0E5]],"prompt_eval_count":null}', id="exponents, no count"),
    pytest.param(b' {"embeddings": [ [1, 0] ], "prompt_eval_count": "4"} ', id="white space"),
]


@pytest.mark.parametrize("body", WHOLE)
def test_other_ways_to_write_a_vector(body: bytes) -> None:
    answer = load_embeddings("n", body, 1)
    assert (answer.floats.tolist(), answer.tokens) == ([1.0, 0.0], 0)


NO_VECTORS = [
    pytest.param(HTML, "answered '<!DOCTYPE html>", id="HTML"),
    pytest.param(b"", "answered nothing", id="nothing"),
    pytest.param(b'{"embeddings":[[1,2],[3', "not JSON", id="cut JSON"),
    pytest.param(b'{"embeddings":[[1,NaN],[3,4]]}', "not JSON", id="NaN"),
    pytest.param(b'{"embeddings":[[1,Infinity],[3,4]]}', "not JSON", id="infinity"),
    pytest.param(b'{"embeddings":[[1,1e999],[3,4]]}', "not JSON", id="too large for a double"),
    pytest.param(b"[[1,2],[3,4]]", "not a JSON object", id="a bare list"),
    pytest.param(b"null", "not a JSON object", id="null"),
    pytest.param(b'{"model":"m"}', "has no embeddings", id="no embeddings"),
    pytest.param(b'{"embeddings":null}', "has no embeddings", id="embeddings of null"),
    pytest.param(b'{"embedding":[1,2]}', "has no embeddings", id="the older API"),
    pytest.param(b'{"error":"out of memory"}', "out of memory", id="an error under status 200"),
    pytest.param(b'{"embeddings":[[1,2]]}', "answered 1 vectors to 2 texts", id="too few"),
    pytest.param(b'{"embeddings":[]}', "answered 0 vectors to 2 texts", id="none"),
    pytest.param(b'{"embeddings":[[1],[2],[3]]}', "answered 3 vectors to 2", id="too many"),
    pytest.param(b'{"embeddings":[1,2]}', "unequal length", id="numbers for vectors"),
    pytest.param(b'{"embeddings":[[1,2],[3]]}', "unequal length (item 1)", id="unequal lengths"),
    pytest.param(b'{"embeddings":[[],[]]}', "unequal length (item 0)", id="empty vectors"),
    pytest.param(b'{"embeddings":[[1,2],null]}', "unequal length (item 1)", id="null, a vector"),
    pytest.param(b'{"embeddings":["ab","cd"]}', "unequal length", id="strings for vectors"),
    pytest.param(b'{"embeddings":[[1,null],[3,4]]}', "an invalid vector", id="null in a vector"),
    pytest.param(b'{"embeddings":[["1",2],[3,4]]}', "an invalid vector", id="a number as a string"),
    pytest.param(b'{"embeddings":[[[1],2],[3,4]]}', "an invalid vector", id="a list in a vector"),
    pytest.param(b'{"embeddings":[[1,true],[3,4]]}', "contains booleans", id="true"),
    pytest.param(b'{"embeddings":[[1,2],[false,4]]}', "contains booleans", id="false"),
    pytest.param(b'{"embeddings":[[1,2],[1e40,4]]}', "too large for float32 (item 1)", id="1e40"),
    pytest.param(b'{"embeddings":[[-3.5e38,2],[3,4]]}', "float32 (item 0)", id="-3.5e38"),
    pytest.param(b'{"embeddings":[[1e40,-1e40],[3,4]]}', "float32 (item 0)", id="1e40 and -1e40"),
    pytest.param(b'{"embeddings":[[1,2],[' + b"9" * 80 + b",4]]}", "float32", id="many nines"),
]


@pytest.mark.parametrize(("body", "problem"), NO_VECTORS)
def test_what_is_no_answer_of_two_vectors(body: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        load_embeddings("gpu", body, 2)
    assert str(caught.value).startswith("gpu: answered ")
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_largest_float32_is_still_one() -> None:
    largest = 3.4028234663852886e38
    body = orjson.dumps({"embeddings": [[largest, largest], [-largest, largest]]})
    assert max(load_embeddings("n", body, 2).floats) == largest
