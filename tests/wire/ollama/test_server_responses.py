"""wire/answers, wire/asked and wire/gojson: what a server reads and writes, as tables."""

from __future__ import annotations

import base64
import json
import math
import struct
from array import array
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.errors import BadRequest, ModelMissing, RunnerFailed, ServerBusy
from aiosollol.wire.ollama import (
    client,
    go_json,
    server_requests,
    server_responses,
)

# ---- what Go says of bad JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "EOF"),
        (" \n ", "EOF"),
        ("{", "unexpected EOF"),
        ('{"a', "unexpected EOF"),
        ('{"a":1', "unexpected EOF"),
        ("[1,", "unexpected EOF"),
        ("nul", "unexpected EOF"),
        ("-", "unexpected EOF"),
        ("1e", "unexpected EOF"),
        ("{not json", "invalid character 'n' looking for beginning of object key string"),
        ('{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        ("<html>", "invalid character '<' looking for beginning of value"),
        ('{"a":}', "invalid character '}' looking for beginning of value"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
        ("NaN", "invalid character 'N' looking for beginning of value"),
        ("'a'", "invalid character '\\'' looking for beginning of value"),
        ('{"a" 1}', "invalid character '1' after object key"),
        ('{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        ("[1 2]", "invalid character '2' after array element"),
        ("[01]", "invalid character '1' after array element"),
        ("nulx", "invalid character 'x' in literal null (expecting 'l')"),
        ('"\\q"', "invalid character 'q' in string escape code"),
        ('"\\u12g4"', "invalid character 'g' in \\u hexadecimal character escape"),
        ('"a\nb"', "invalid character '\\n' in string literal"),
        ("-x", "invalid character 'x' in numeric literal"),
        ("1.x", "invalid character 'x' after decimal point in numeric literal"),
        ("1ex", "invalid character 'x' in exponent of numeric literal"),
        ("é", "invalid character '\\u00c3' looking for beginning of value"),
        ("[" * 5000 + "]" * 5000, "exceeded max depth"),
        ("[" * 5000, "unexpected EOF"),
        ("[" * 10_001, "invalid character '[' exceeded max depth"),
        ('{"a":' * 10_001, "invalid character '{' exceeded max depth"),
        ("\ufeff{}", "invalid character '\\u00ef' looking for beginning of value"),
        ("[1e999]", "json: cannot unmarshal number 1e999 into Go value of type float64"),
        ("[-1.5E+400,2]", "json: cannot unmarshal number -1.5E+400 into Go value of type float64"),
        ("1" * 400, f"json: cannot unmarshal number {'1' * 40} into Go value of type float64"),
        ("[1e999,2", "unexpected EOF"),
        ("[1e999 2]", "invalid character '2' after array element"),
    ],
)
def test_bad_json_is_refused_in_gos_words(text: str, message: str) -> None:
    with pytest.raises(go_json.GoJSONError) as caught:
        go_json.loads(text.encode())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":1} and more', {"a": 1}),
        (b'[1,{"b":[]},{}] ]', [1, {"b": []}, {}]),
        (b'"\\ud83d"', "\ufffd"),
        (b'{"\\udc00":["\\ud800x"]}', {"\ufffd": ["\ufffdx"]}),
        (b'"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        (b'"\\ud83d\\ud83d\\ude00"', "\ufffd\N{GRINNING FACE}"),
        (b'["\\\\ud83d","\\ud83d\\n"]', ["\\ud83d", "\ufffd\n"]),
        (b'["\\uDBFF\\uDFFF\\udfff"]', ["\U0010ffff\ufffd"]),
        (b'{"a":1,"a":"\xff"} x', {"a": "\ufffd"}),
        (b'{"a":"\xe4\xb8"}]', {"a": "\ufffd"}),
        (b'"\xff"', "\ufffd"),
        (b"12 x", 12),
        (b"-0.5e+3,", -500.0),
        (b"true false", True),
        (b'"a"b', "a"),
        (b'"a\\"" b', 'a"'),
    ],
)
def test_go_forgives(body: bytes, value: object) -> None:
    assert go_json.loads(body) == value


texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts
json_values: st.SearchStrategy[Any] = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)


@given(json_values, st.text("{}[]:,x \"'", max_size=4))
def test_what_stands_behind_a_value_does_not_matter(value: Any, rest: str) -> None:
    body = f"{json.dumps(value)} {rest}".encode()
    assert go_json.loads(body) == value


@given(st.binary(max_size=30) | st.text('{}[]:,"\\u0d8e1-.tfn ', max_size=20).map(str.encode))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        value = go_json.loads(body)
    except go_json.GoJSONError as error:
        value = str(error)
        words = value.partition("'")[0]
        assert words in ("EOF", "unexpected EOF", "invalid character ")
    json.dumps(value, ensure_ascii=False).encode()  # no lone surrogates are left


# ---- requests


@pytest.mark.parametrize(
    ("read", "body", "message"),
    [
        (server_requests.read_embed, b"", "missing request body"),
        (server_requests.read_openai_embeddings, b"", "EOF"),
        (
            server_requests.read_chat,
            b"[]",
            "json: cannot unmarshal array into Go value of type api.ChatRequest",
        ),
        (
            server_requests.read_embed,
            b'{"model":3,"input":4}',
            "json: cannot unmarshal number into Go struct field EmbedRequest.model of type string",
        ),
        (
            server_requests.read_embed,
            b'{"dimensions":"8"}',
            "json: cannot unmarshal string into Go struct field EmbedRequest.dimensions "
            "of type int",
        ),
        (
            server_requests.read_embed,
            b'{"dimensions":true}',
            "json: cannot unmarshal bool into Go struct field EmbedRequest.dimensions of type int",
        ),
        (
            server_requests.read_embed,
            b'{"dimensions":9223372036854775808}',
            "json: cannot unmarshal number 9223372036854775808 into Go struct field "
            "EmbedRequest.dimensions of type int",
        ),
        (
            server_requests.read_embed,
            b'{"dimensions":1.5}',
            "json: cannot unmarshal number 1.5 into Go struct field EmbedRequest.dimensions "
            "of type int",
        ),
        (
            server_requests.read_embed,
            b'{"dimensions":%b}' % (b"1" * 5000),
            f"json: cannot unmarshal number {'1' * 40} into Go value of type float64",
        ),
        (
            server_requests.read_generate,
            b'{"options":[]}',
            "json: cannot unmarshal array into Go struct field GenerateRequest.options "
            "of type map[string]interface {}",
        ),
        (
            server_requests.read_chat,
            b'{"messages":["hello"]}',
            "json: cannot unmarshal string into Go struct field ChatRequest.messages "
            "of type api.Message",
        ),
        (server_requests.read_embed, b'{"input":{}}', "invalid input type"),
        (server_requests.read_embed, b'{"input":[null]}', "invalid input type"),
        (server_requests.read_embed, b'{"input":false}', "invalid input type"),
        (server_requests.read_openai_embeddings, b'{"input":[1,2]}', "invalid input type"),
        (server_requests.read_openai_embeddings, b"{}", "invalid input"),
        (server_requests.read_embed, b'{"keep_alive":"5"}', 'time: missing unit in duration "5"'),
        (server_requests.read_embed, b'{"keep_alive":"soon"}', 'time: invalid duration "soon"'),
        (
            server_requests.read_embed,
            b'{"keep_alive":"5mx"}',
            'time: unknown unit "mx" in duration "5mx"',
        ),
        (
            server_requests.read_chat,
            b'{"keep_alive":"%b"}' % (b"1" * 1400),
            f'time: invalid duration "{"1" * 1400}"',
        ),
        (server_requests.read_embed, b'{"keep_alive":true}', "Unsupported type: 'bool'"),
        (server_requests.read_show, b"{}", "model is required"),
    ],
)
def test_requests_are_refused_in_ollamas_words(read: Any, body: bytes, message: str) -> None:
    with pytest.raises(server_requests.Refusal) as caught:
        read(body)
    assert (caught.value.status, caught.value.message) == (400, message)


@pytest.mark.parametrize(
    ("given_input", "texts"),
    [('"a"', ["a"]), ('""', []), ("null", []), ("[]", []), ('["",""]', ["", ""])],
)
def test_input_to_embed(given_input: str, texts: list[str]) -> None:
    request = server_requests.read_embed(b'{"model":"m","input":%b}' % given_input.encode())
    assert list(request.texts) == texts


def test_input_to_openai_embeddings() -> None:
    """An empty string is a text there, and none on Ollama's own endpoint."""
    assert list(server_requests.read_openai_embeddings(b'{"input":""}').texts) == [""]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("null", None),
        ("0", 0.0),
        ("30", 30.0),
        ("-1", math.inf),
        ('"5m"', 300.0),
        ('"1h30m"', 5400.0),
        ('"1.5s"', 1.5),
        ('"500ms"', 0.5),
        ('"0"', 0.0),
        ('"-1s"', math.inf),
        ('"-0s"', 0.0),
        ('"1m30.5s"', 90.5),
        ('"250\u00b5s"', 0.00025),
        ("1e308", 1e308),
        ("11111111111111111111111111111111", 1.1111111111111112e31),
    ],
)
def test_keep_alive(value: str, seconds: float | None) -> None:
    body = b'{"model":"m","keep_alive":%b}' % value.encode()
    for read in (
        server_requests.read_embed,
        server_requests.read_embeddings,
        server_requests.read_chat,
        server_requests.read_generate,
    ):
        assert read(body).keep_alive == seconds


def test_old_servers_ignore_encoding_format() -> None:
    body = b'{"input":"x","encoding_format":"hex"}'
    assert server_requests.read_openai_embeddings(body, knows_base64=False).encoding == "float"
    with pytest.raises(server_requests.Refusal, match="Invalid value for 'encoding_format' = hex"):
        server_requests.read_openai_embeddings(body)


# ---- errors: what a server writes, our own client reads as what it is


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (server_responses.unknown_model("m"), ModelMissing),
        (server_responses.unknown_model_try_pulling("m"), ModelMissing),
        (server_responses.unknown_model_try_pulling(""), ModelMissing),
        (server_responses.cannot("m", "chat"), BadRequest),
        (server_responses.cannot_use_tools("m"), BadRequest),
        (server_requests.Refusal(501, server_responses.NO_EMBEDDINGS), BadRequest),
        (server_requests.Refusal(400, server_responses.TOO_LONG), BadRequest),
        (server_requests.Refusal(503, server_responses.BUSY), ServerBusy),
        (server_requests.Refusal(500, server_responses.NAN), RunnerFailed),
        (server_requests.Refusal(500, server_responses.RUNNER_GONE), RunnerFailed),
    ],
)
def test_errors_are_understood(
    refusal: server_requests.Refusal, kind: type[Exception], openai: bool
) -> None:
    answer = server_responses.refuse(refusal, openai=openai)
    error = client.error_for("node", answer.status, answer.body)
    assert type(error) is kind
    assert client.error_message(answer.body) == refusal.message


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("tiny", "registry.ollama.ai/library/tiny:latest"),
        ("tiny:1b", "registry.ollama.ai/library/tiny:1b"),
        ("me/tiny", "registry.ollama.ai/me/tiny:latest"),
    ],
)
def test_the_name_in_the_tools_error(model: str, name: str) -> None:
    assert server_responses.cannot_use_tools(model).message == f"{name} does not support tools"


# ---- vectors

float32s = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1)


def without_numpy() -> None:
    return None


@pytest.fixture(params=["with numpy", "without numpy"])
def _numpy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without numpy":
        monkeypatch.setattr(server_responses, "_numpy", without_numpy)


@given(float32s)
def test_json_vectors_are_exact(numbers: list[float]) -> None:
    floats = array("f", numbers).tobytes()
    for shown in (
        server_responses.json_vectors(floats, 1),
        server_responses.json_vectors(floats, len(numbers)),
    ):
        values = orjson.loads(b"[" + b",".join(shown) + b"]")
        flat = [number for vector in values for number in vector]
        assert array("f", flat) == array("f", numbers)


@given(float32s)
def test_base64_vectors_are_little_endian_float32(numbers: list[float]) -> None:
    (shown,) = server_responses.base64_vectors(array("f", numbers).tobytes(), len(numbers))
    raw = base64.b64decode(orjson.loads(shown), validate=True)
    assert raw == struct.pack(f"<{len(numbers)}f", *numbers)


@pytest.mark.usefixtures("_numpy")
def test_vectors_are_cut_apart_in_order() -> None:
    floats = array("f", [0.5, 1.5, -2.5, 3.0, 4.0, 5.0])
    assert [orjson.loads(row) for row in server_responses.json_vectors(floats.tobytes(), 3)] == [
        [0.5, 1.5, -2.5],
        [3.0, 4.0, 5.0],
    ]
    assert server_responses.json_vectors(b"", 3) == server_responses.base64_vectors(b"", 3) == []


def test_numbers_are_as_short_as_gos() -> None:
    """The digits of a real answer, from the captures, come out as they went in."""
    numbers = [-0.034432307, 0.030898793, 0.006729784, -0.1604086, -0.03498432, 0.0018894251]
    (shown,) = server_responses.json_vectors(array("f", numbers).tobytes(), len(numbers))
    assert shown.decode() == str(numbers).replace(" ", "")


# ---- small things


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_795_251_719_127_898_359, "2026-11-21T09:01:59.127898359Z"),
        (1_795_251_719_500_000_000, "2026-11-21T09:01:59.5Z"),
    ],
)
def test_timestamps(nanoseconds: int, text: str) -> None:
    assert server_responses.timestamp(nanoseconds) == text
    assert server_responses.seconds_of(text) == nanoseconds // 1_000_000_000


def test_what_is_zero_is_left_out() -> None:
    assert server_responses.embed("m", []).body == b'{"model":"m","embeddings":[]}'
    assert server_responses.embeddings(None).body == b'{"embedding":[]}'
    final = server_responses.chat_final("m", "now", "load")
    assert list(final) == ["model", "created_at", "message", "done", "done_reason"]
