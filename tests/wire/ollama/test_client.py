"""Ollama's API from a client's side: what a real server answered, and what a broken one may.

tests/captures holds requests and the answers of a real server; `captured` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import orjson
import project_paths
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.node import LoadedModel, ModelInfo
from aiosollol.core.request import EmbedSettings
from aiosollol.errors import (
    BadRequest,
    InvalidInput,
    ModelMissing,
    NodeError,
    NodeUnavailable,
    ProtocolError,
    ResponseError,
    RunnerFailed,
    ServerBusy,
)
from aiosollol.wire.ollama.client import (
    dump,
    error_for,
    load,
    load_ps,
    load_tags,
    load_version,
)
from aiosollol.wire.ollama.embeddings import dump_embed, load_embeddings

CAPTURES = project_paths.CAPTURES


def captured(name: str) -> tuple[int, bytes, Any]:
    """Status and body of a real answer, and the body of the request that it answers."""
    capture = json.loads((CAPTURES / f"{name}.json").read_text("utf-8"))
    body = capture["body"]
    raw = body.encode() if isinstance(body, str) else orjson.dumps(body)
    return capture["status"], raw, capture["request"]["body"]


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


HTML = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head></html>"
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


# Errors.

CRASHED = "llama runner process no longer running: -1"
EOF = 'do embedding request: Post "http://127.0.0.1:36147/embedding": EOF'

ERRORS: list[tuple[str, int, str, type[NodeError]]] = [
    ("too long for the model", 400, "the input length exceeds the context length", BadRequest),
    ("an option", 400, 'option "num_ctx" must be of type integer: invalid options', BadRequest),
    ("no image", 400, "failed to decode image", BadRequest),
    ("a model that cannot think", 400, '"m" does not support thinking', BadRequest),
    ("its name has an eof in it", 400, '"geoffrey" does not support chat', BadRequest),
    ("a dead runner is a 400 too", 400, CRASHED, RunnerFailed),
    ("a dead runner", 500, CRASHED, RunnerFailed),
    ("a runner that hung up", 400, EOF, RunnerFailed),
    ("a runner that hung up, 500", 500, EOF, RunnerFailed),
    (
        "a runner that is not there",
        400,
        'Post "http://127.0.0.1:36147/embedding": dial tcp 127.0.0.1:36147: connect: '
        "connection refused",
        RunnerFailed,
    ),
    ("NaN", 400, "failed to encode response: json: unsupported value: NaN", RunnerFailed),
    ("NaN, 500", 500, "failed to encode response: json: unsupported value: NaN", RunnerFailed),
    ("a tokenizer", 400, "failed to tokenize input", RunnerFailed),
    ("whatever else is a 400", 400, "something new", RunnerFailed),
    ("words of the input in a 500", 500, "invalid character '<' in answer", RunnerFailed),
    (
        "out of memory",
        500,
        "model requires more system memory (5.6 GiB) than is available (1.2 GiB)",
        RunnerFailed,
    ),
    (
        "a load that failed",
        500,
        "model failed to load, this may be due to resource limitations or an internal error",
        RunnerFailed,
    ),
    (
        "busy",
        503,
        "server busy, please try again.  maximum pending requests exceeded",
        ServerBusy,
    ),
    ("busy, by its words", 500, "server busy, please try again.", ServerBusy),
    ("any 503", 503, "starting up", ServerBusy),
    ("a model that is still loading", 503, "Loading model", NodeUnavailable),
    ("any 429", 429, "slow down", ServerBusy),
    ("a gateway without nodes", 502, "something new", NodeUnavailable),
    ("an option, 500", 500, 'option "num_ctx" must be of type integer', BadRequest),
    ("two images", 500, "this model only supports one image while more than one", BadRequest),
    ("no such model, embedding", 404, 'model "x" not found, try pulling it first', ModelMissing),
    ("no such model, chat", 404, "model 'x' not found", ModelMissing),
    ("no model named", 404, "model '' not found", ModelMissing),
    ("we went away", 499, "request cancelled", ResponseError),
    ("no access", 401, "unauthorized", ResponseError),
    ("a foreign Host", 403, "forbidden", ResponseError),
]


@pytest.mark.parametrize("as_object", [False, True], ids=["/api", "/v1"])
@pytest.mark.parametrize(
    ("status", "message", "kind"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS]
)
def test_the_message_tells_what_failed(
    status: int, message: str, kind: type[NodeError], as_object: bool
) -> None:
    error = {"message": message, "type": "api_error", "code": None} if as_object else message
    failure = error_for("gpu", status, orjson.dumps({"error": error}))
    assert type(failure) is kind
    assert isinstance(failure, ResponseError)
    assert (failure.node, failure.status, failure.message) == ("gpu", status, message)


TALK = ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages"]


@pytest.mark.parametrize("path", [*TALK, "/v1/responses"])
def test_an_unknown_400_of_chat_or_generate_blames_the_request(path: str) -> None:
    error = error_for("n", 400, b'{"error":"something new"}', path=path)
    assert isinstance(error, BadRequest)
    assert not error.is_known
    assert type(error_for("n", 400, b"something new", path=path)) is RunnerFailed  # no Ollama's
    assert type(error_for("n", 500, b'{"error":"something new"}', path=path)) is RunnerFailed
    assert type(error_for("n", 400, orjson.dumps({"error": CRASHED}), path=path)) is RunnerFailed


@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings", "/api/embeddings", ""])
def test_an_unknown_400_of_an_embedding_is_ambiguous(path: str) -> None:
    error = error_for("n", 400, b'{"error":"something new"}', path=path)
    assert type(error) is RunnerFailed
    assert not error.is_known


def test_an_error_has_what_is_known_of_it() -> None:
    error = error_for("n", 503, b'{"error":"server busy"}', retry_after=2.5)
    assert isinstance(error, ServerBusy)
    assert (error.fault, error.is_known, error.retry_after) == ("busy", True, 2.5)


def test_a_hint_is_for_answers_that_are_not_ollamas() -> None:
    assert str(error_for("n", 404, b"404 page not found", hint="write x")) == (
        "n: 404 page not found (status 404); write x"
    )
    assert str(error_for("n", 301, HTML, hint="write x")).endswith("; write x")
    assert "write x" not in str(error_for("n", 404, b'{"error":"model not found"}', hint="write x"))


REAL_ERRORS: dict[str, type[NodeError]] = {
    "12-embed-no-model": ModelMissing,
    "13-embed-unknown-model": ModelMissing,
    "14-embed-input-number": BadRequest,
    "15-embed-input-list-with-number": BadRequest,
    "16-embed-too-long-truncate-false": BadRequest,
    "18-embed-bad-json": BadRequest,
    "19-embed-no-body": BadRequest,
    "20-embed-with-chat-model": BadRequest,
    "21-embed-get": ResponseError,
    "24-embeddings-legacy-unknown": ModelMissing,
    "27-v1-embeddings-bad-format": BadRequest,
    "28-v1-embeddings-empty-list": BadRequest,
    "29-v1-embeddings-unknown": ModelMissing,
    "32-show-unknown": ModelMissing,
    "36-chat-unknown-model": ModelMissing,
    "37-chat-with-embedding-model": BadRequest,
    "38-chat-tools-unsupported": BadRequest,
    "46-v1-model-unknown": ModelMissing,
    "57-delete-unknown": ModelMissing,
    "58-unknown-path": ResponseError,
}


@pytest.mark.parametrize("name", REAL_ERRORS)
def test_real_errors(name: str) -> None:
    status, body, _ = captured(name)
    error = error_for("n", status, body)
    assert type(error) is REAL_ERRORS[name]
    assert f"status {status}" in str(error)


def test_no_real_error_is_left_out() -> None:
    failed = {path.stem for path in CAPTURES.glob("*.json") if captured(path.stem)[0] >= 400}
    assert failed - {"49-v1-chat-empty", "50-v1-chat-unknown"} == set(REAL_ERRORS)


STRANGE: list[tuple[str, int, bytes, type[NodeError], str]] = [
    ("HTML of a proxy", 502, HTML, NodeUnavailable, "answered '<!DOCTYPE html>"),
    ("HTML of a busy proxy", 503, b"\n<html>busy</html>", NodeUnavailable, "(status 503)"),
    ("HTML of a late proxy", 504, HTML, NodeUnavailable, "(status 504)"),
    ("HTML of an impatient proxy", 408, HTML, NodeUnavailable, "(status 408)"),
    ("HTML of a rate limit", 429, HTML, ServerBusy, "(status 429)"),
    ("text of a proxy", 503, b"no healthy upstream", NodeUnavailable, "no healthy upstream"),
    ("an empty 502", 502, b"", NodeUnavailable, "no message (status 502)"),
    ("a long 504", 504, b"x" * 5000, NodeUnavailable, "xxx...' (status 504)"),
    ("HTML of a crashed proxy", 500, HTML, ProtocolError, "status 500 with '<!DOCTYPE html>"),
    ("a redirect", 301, b"", ProtocolError, "status 301 with nothing"),
    ("a long text", 500, b"x" * 5000, ProtocolError, "xxx...'"),
    ("plain text", 500, b"boom\n", RunnerFailed, "n: boom (status 500)"),
    ("an empty body", 500, b"", RunnerFailed, "n: no message (status 500)"),
    ("no UTF-8", 500, b"\xff\xfe", RunnerFailed, "(status 500)"),
    ("JSON without an error", 400, b'{"detail":"x"}', RunnerFailed, '{"detail":"x"}'),
    ("an error of null", 400, b'{"error":null}', RunnerFailed, '{"error":null}'),
    ("an error that is a number", 400, b'{"error":7}', RunnerFailed, '{"error":7}'),
    ("a list", 500, b'["boom"]', RunnerFailed, "boom"),
    ("JSON cut off", 500, b'{"error":"bo', RunnerFailed, '{"error":"bo'),
]


@pytest.mark.parametrize(
    ("status", "body", "kind", "shown"),
    [case[1:] for case in STRANGE],
    ids=[case[0] for case in STRANGE],
)
def test_errors_of_something_that_is_not_ollama(
    status: int, body: bytes, kind: type[NodeError], shown: str
) -> None:
    error = error_for("n", status, body)
    assert type(error) is kind
    assert shown in str(error)
    assert len(str(error)) < 250


@settings(deadline=None)
@given(st.integers(100, 599), st.binary() | st.from_regex(rb'\{"error":.{0,20}\}', fullmatch=True))
def test_any_answer_is_an_error_of_the_node(status: int, body: bytes) -> None:
    error = error_for("gpu", status, body)
    assert isinstance(error, ProtocolError | ResponseError)
    assert str(error).startswith("gpu: ")


# What a node is and has.


def test_the_models_of_a_real_node() -> None:
    models = load_tags("n", captured("03-tags")[1])
    digest = "5cb97c13a7699afe894626b2e2759d6feaa4f5b09cb780313092ac3bc70e44d9"
    assert models["all-minilm:latest"] == ModelInfo("all-minilm:latest", digest, 46223508, 384, 512)
    assert (models["tiny-chat:latest"].dim, models["tiny-chat:latest"].context_length) == (64, 4096)


def test_what_a_real_node_has_loaded() -> None:
    assert load_ps("n", captured("04-ps-empty")[1]) == {}
    loaded = load_ps("n", captured("30-ps-loaded")[1])
    digest = "5cb97c13a7699afe894626b2e2759d6feaa4f5b09cb780313092ac3bc70e44d9"
    assert list(loaded) == ["all-minilm:latest", "tiny-chat:latest"]
    assert loaded["all-minilm:latest"] == LoadedModel("all-minilm:latest", digest, 0, 0, 512)


def test_models_keep_their_spelling_under_keys_without_case() -> None:
    body = b'{"models":[{"name":"Me/Model:Q4"},{"name":"registry.ollama.ai/library/X"}]}'
    for models in (load_tags("n", body), load_ps("n", body)):
        names = {key: model.name for key, model in models.items()}
        assert names == {"me/model:q4": "Me/Model:Q4", "x:latest": "X:latest"}


def test_the_version_of_a_real_node() -> None:
    assert load_version("n", captured("02-version")[1]) == "0.lab"


LISTS: list[tuple[str, bytes, Sequence[str]]] = [
    ("an empty list in Go", b'{"models":null}', []),
    ("no list", b"{}", []),
    ("only a name", b'{"models":[{"name":"x"}]}', ["x:latest"]),
    ("no name", b'{"models":[{"size":1},{"name":null},{"name":"y:1b"}]}', ["y:1b"]),
    ("no objects", b'{"models":[1,"x",null]}', []),
    ("a wrong context", b'{"models":[{"name":"x","context_length":true}]}', ["x:latest"]),
    (
        "a context below zero",
        b'{"models":[{"name":"x","context_length":-1,"details":{"context_length":-1}}]}',
        ["x:latest"],
    ),
    ("no names", b'{"models":[{"name":""},{"name":"a b"},{"name":"x"}]}', ["x:latest"]),
    ("wrong types", b'{"models":[{"name":"x","size":"1","digest":2,"details":3}]}', ["x:latest"]),
]


@pytest.mark.parametrize(
    ("body", "names"), [case[1:] for case in LISTS], ids=[case[0] for case in LISTS]
)
def test_lists_of_models_that_lack_something(body: bytes, names: list[str]) -> None:
    tags, loaded = load_tags("n", body), load_ps("n", body)
    assert list(tags) == list(loaded) == names
    for name in names:
        assert tags[name] == ModelInfo(name)
        assert loaded[name] == LoadedModel(name)


@pytest.mark.parametrize("read", [load, load_tags, load_ps, load_version])
@pytest.mark.parametrize("body", [HTML, b"", b"[]", b'"ok"', b'{"models":['])
def test_what_is_not_ollama(read: Any, body: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"not (JSON|a JSON object)"):
        read("n", body)


def test_an_answer_without_what_was_asked_for() -> None:
    with pytest.raises(ProtocolError, match="has no version"):
        load_version("n", b'{"version":3}')
    with pytest.raises(ProtocolError, match="has no list of models"):
        load_tags("n", b'{"models":{}}')
