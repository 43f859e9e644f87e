"""Embeddings on the wire: both endpoints, every encoding, equal to the last bit."""

from __future__ import annotations

import base64
import json
import math
import struct
import sys
from typing import Any

import numpy  # noqa: F401 - simdjson is used only where numpy is
import orjson
import project_paths
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiosollol.core.request import EmbedSettings
from aiosollol.errors import ModelMissing, ProtocolError
from aiosollol.wire.ollama import embeddings
from aiosollol.wire.ollama.client import error_for
from aiosollol.wire.ollama.embeddings import (
    dump_embed,
    fits_base64,
    has_nan,
    lacks_endpoint,
    load_embeddings,
)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
CAPTURES = project_paths.CAPTURES


def captured(name: str) -> bytes:
    return orjson.dumps(json.loads((CAPTURES / f"{name}.json").read_text("utf-8"))["body"])


def in_base64(vectors: list[bytes | str], **fields: Any) -> bytes:
    texts = [base64.b64encode(v).decode() if isinstance(v, bytes) else v for v in vectors]
    data = [{"object": "embedding", "embedding": t, "index": i} for i, t in enumerate(texts)]
    return orjson.dumps({"object": "list", "data": data, "usage": {"prompt_tokens": 8}} | fields)


def test_a_real_server_answers_the_same_bits_both_ways() -> None:
    as_json = load_embeddings("n", captured("06-embed-list"), 2)
    as_base64 = load_embeddings("n", captured("26-v1-embeddings-base64"), 2)
    assert as_json.floats.tobytes() == as_base64.floats.tobytes()
    assert (as_json.is_base64, as_base64.is_base64) == (False, True)
    assert (as_base64.count, as_base64.dim, as_base64.tokens) == (2, 384, 8)


def test_numbers_from_the_endpoint_that_was_asked_for_base64_are_read_as_numbers() -> None:
    answer = load_embeddings("n", captured("25-v1-embeddings-float-dim8"), 2)
    assert (answer.dim, answer.is_base64) == (8, False)


@given(
    st.lists(
        st.lists(FLOATS, min_size=3, max_size=3),
        min_size=1,
        max_size=5,
    )
)
def test_any_float32_survives_either_way(vectors: list[list[float]]) -> None:
    packed = [struct.pack("<3f", *vector) for vector in vectors]
    as_base64 = load_embeddings("n", in_base64([*packed]), len(vectors))
    as_json = load_embeddings("n", orjson.dumps({"embeddings": vectors}), len(vectors))
    assert as_base64.floats.tobytes() == as_json.floats.tobytes() == b"".join(packed)
    # The same answer in another form than Ollama's own, which is read as JSON.
    spaced = json.dumps(orjson.loads(in_base64([*packed]))).encode()
    assert load_embeddings("n", spaced, len(vectors)) == as_base64


@pytest.mark.parametrize("name", [b"data", b"d\\u0061ta"])
def test_what_looks_like_ollamas_form_and_names_data_twice_is_read_as_json(name: bytes) -> None:
    body = in_base64([struct.pack("<f", 1.0)])
    assert load_embeddings("n", body, 1).is_base64
    twice = body[:-1] + b',"%b":[]}' % name
    with pytest.raises(ProtocolError, match="answered 0 vectors to 1 texts"):
        load_embeddings("n", twice, 1)
    named = in_base64([struct.pack("<f", 1.0)], model="data")
    assert load_embeddings("n", named, 1) == load_embeddings("n", body, 1)


def test_entries_out_of_order_are_put_in_order() -> None:
    data = [
        {"embedding": base64.b64encode(struct.pack("<f", number)).decode(), "index": index}
        for number, index in ((2.0, 1), (1.0, 0))
    ]
    assert list(load_embeddings("n", orjson.dumps({"data": data}), 2).floats) == [1.0, 2.0]


NAN = struct.pack("<2f", 1.0, math.nan)
INFINITE = struct.pack("<2f", -math.inf, 1.0)
FINE = struct.pack("<2f", 1.0, 2.0)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        pytest.param(
            in_base64([FINE, NAN]), "NaN or a number too large for float32 (item 1)", id="NaN"
        ),
        pytest.param(in_base64([INFINITE, FINE]), "too large for float32 (item 0)", id="infinity"),
        pytest.param(in_base64([FINE, FINE[:4]]), "unequal length", id="unequal"),
        pytest.param(in_base64([FINE[:3], FINE[:3]]), "unequal length", id="not whole floats"),
        pytest.param(in_base64(["", ""]), "unequal length", id="empty"),
        pytest.param(in_base64([FINE, "not base64!"]), "not base64", id="not base64"),
        pytest.param(in_base64([FINE]), "1 vectors to 2 texts", id="too few"),
        pytest.param(orjson.dumps({"data": [1, 2]}), "are not objects", id="no objects"),
        pytest.param(orjson.dumps({"data": [{}, {}]}), "unequal length", id="no embedding"),
        pytest.param(
            orjson.dumps({"data": [{"index": "x"}, {"index": 0}]}), "invalid index", id="index"
        ),
        pytest.param(in_base64([FINE, FINE])[:-40], "not JSON", id="cut"),
    ],
)
def test_what_is_no_answer_of_two_vectors(body: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        load_embeddings("n", body, 2)
    assert problem in str(caught.value)


def test_numbers_as_large_as_float32_goes_are_fine() -> None:
    largest = struct.pack("<2f", 3.4028234663852886e38, -3.4028234663852886e38)
    assert load_embeddings("n", in_base64([largest]), 1).floats.tobytes() == largest


@pytest.mark.parametrize(
    ("given_settings", "fits"),
    [
        ({}, True),
        ({"dimensions": 4}, True),
        ({"truncate": False}, False),
        ({"truncate": True}, False),
        ({"options": {}}, False),
        ({"keep_alive": 0}, False),
    ],
)
def test_only_requests_of_which_nothing_is_dropped_ask_for_base64(
    given_settings: dict[str, Any], fits: bool
) -> None:
    request = EmbedSettings(model="m", **given_settings)
    assert fits_base64(request) is fits
    assert ("encoding_format" in orjson.loads(dump_embed(request, ["a"]))) is fits


@pytest.mark.parametrize(
    ("status", "body", "lacks"),
    [
        (404, b"404 page not found", True),
        (405, b"405 method not allowed", True),
        (404, b'{"error":{"message":"model \\"x\\" not found, try pulling it first"}}', False),
        (500, b"404 page not found", False),
    ],
)
def test_an_old_server_is_told_from_a_missing_model(status: int, body: bytes, lacks: bool) -> None:
    error = error_for("n", status, body)
    assert lacks_endpoint(error) is lacks
    assert isinstance(error, ModelMissing) is (status == 404 and not lacks)


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (500, "failed to encode response: json: unsupported value: NaN", True),
        (400, "do embedding request: json: unsupported value: NaN", True),
        (500, "failed to encode response: json: unsupported value: +Inf", True),
        (500, "embedding contains NaN or Inf values", True),
        (500, "llama runner process has terminated: exit status 2", False),
        (400, "the input length exceeds the context length", False),
        (404, "model 'NaN' not found", False),
    ],
)
def test_words_for_nan(status: int, message: str, expected: bool) -> None:
    assert has_nan(error_for("n", status, orjson.dumps({"error": message}))) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (in_base64([FINE, NAN]), True),
        (in_base64([INFINITE, FINE]), True),
        (b'{"embeddings":[[1e39],[1]]}', True),
        (in_base64([FINE]), False),
        (b"<html>NaN</html>", False),
    ],
)
def test_nan_in_an_answer(body: bytes, expected: bool) -> None:
    with pytest.raises(ProtocolError) as caught:
        load_embeddings("n", body, 2)
    assert has_nan(caught.value) is expected


@pytest.fixture(params=["simdjson", "orjson"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Numbers are read by either library, with the same outcome."""
    assert "numpy" in sys.modules
    if request.param == "orjson":
        monkeypatch.setattr(embeddings, "_parser", lambda: None)
    else:
        assert embeddings.read_numbers(b'{"embeddings":[[1,2]]}', 1) is not None
    return str(request.param)


@given(vectors=st.lists(st.lists(FLOATS, min_size=2, max_size=2), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_are_read_to_the_last_bit(reader: str, vectors: list[list[float]]) -> None:
    body = orjson.dumps({"embeddings": vectors, "prompt_eval_count": 7})
    answer = load_embeddings("n", body, len(vectors))
    assert answer.floats.tobytes() == b"".join(struct.pack("<2f", *vector) for vector in vectors)
    assert (answer.dim, answer.tokens, answer.is_base64) == (2, 7, False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"embeddings":[[1,2],[true,4]]}',
        b'{"embeddings":[[1,2],[null,4]]}',
        b'{"embeddings":[[1,2],["3",4]]}',
        b'{"embeddings":[[1,2],[[3],4]]}',
        b'{"embeddings":[[1,2],[3]]}',
        b'{"embeddings":[[1,2]]}',
        b'{"embeddings":[[],[]]}',
        b'{"embeddings":[[1,2],[NaN,4]]}',
        b'{"embeddings":[[1,2],[1e40,4]]}',
        b'{"embeddings":[[1,2],[3,4]',
        b'{"embeddings":{"a":1}}',
        b"[[1,2],[3,4]]",
    ],
)
def test_what_is_no_vector_of_numbers_is_refused_by_either_reader(reader: str, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        load_embeddings("n", body, 2)
