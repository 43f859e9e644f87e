"""wire/ollama/client: what an error is, and whose."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ollama_client_parts import CAPTURES, HTML, captured

from aiosollol.errors import (
    BadRequest,
    ModelMissing,
    NodeError,
    NodeUnavailable,
    ProtocolError,
    ResponseError,
    RunnerFailed,
    ServerBusy,
)
from aiosollol.wire.ollama.client import (
    error_for,
)

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
