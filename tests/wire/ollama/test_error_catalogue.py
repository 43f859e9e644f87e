"""The catalogue of Ollama's error messages: whole messages of its source -> whose fault."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from aiosollol.errors import FaultKind
from aiosollol.wire.ollama.error_catalogue import KNOWN_MESSAGES, MAX_CHARACTERS, fault_of

LOST = 'do embedding request: Post "http://127.0.0.1:36147/v1/embeddings": '
STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal "
    "error, check ollama server logs for details"
)
MESSAGES: list[tuple[int, str, FaultKind | None]] = [
    # The request, whatever the status.
    (500, 'option "num_ctx" must be of type integer', "request"),
    (400, 'option "num_ctx" must be of type integer', "request"),
    (500, 'option "stop" must be of an array of strings', "request"),
    (400, "illegal base64 data at input byte 4", "request"),
    (500, "illegal base64 data at input byte 4", "request"),
    (400, "invalid base64 image data: illegal base64 data at input byte 0", "request"),
    (400, 'invalid think value: "maybe" (must be "high", "medium", "low", "max")', "request"),
    (400, 'invalid think value: "maybe" (must be "high", "medium", "low", true)', "request"),
    (400, 'think must be a boolean or string ("high", "medium", "low", true, or false)', "request"),
    (400, "top_logprobs must be between 0 and 20", "request"),
    (400, "invalid model name", "request"),
    (400, "model is required", "request"),
    (400, "missing request body", "request"),
    (400, "EOF", "request"),
    (400, "unexpected EOF", "request"),
    (400, "unexpected end of JSON input", "request"),
    (400, "invalid character 'x' looking for beginning of value", "request"),
    (400, "json: cannot unmarshal string into Go struct field ChatRequest.stream", "request"),
    (400, "content must be a string or array: json: cannot unmarshal number into Go", "request"),
    (400, "Unsupported type: 'bool'", "request"),
    (400, 'time: invalid duration "x"', "request"),
    (400, 'time: missing unit in duration "5"', "request"),
    (400, 'time: unknown unit "q" in duration "5q"', "request"),
    (400, '"all-minilm" does not support chat', "request"),
    (400, "registry.ollama.ai/library/tiny does not support tools", "request"),
    (501, "This server does not support embeddings. Start it with `--embeddings`", "request"),
    (500, "this model only supports one image while more than one image requested", "request"),
    (500, 'invalid format: "x"; expected "json" or a valid JSON Schema object', "request"),
    (500, "template: :1: unclosed action", "request"),
    (400, "[] is too short - 'messages'", "request"),
    (400, "Invalid value for 'encoding_format' = x. Supported: ['float', 'base64'].", "request"),
    (400, "invalid input", "request"),
    (400, "max_tokens is required and must be positive", "request"),
    (400, "image URLs are not currently supported, please use base64 encoded data", "request"),
    # The text.
    (400, "the input length exceeds the context length", "text"),
    (500, "the input length exceeds the context length", "text"),
    (400, "input after truncation exceeds maximum context length", "text"),
    (400, "input exceeds maximum context length and cannot be truncated further", "text"),
    (500, '{"error":{"message":"the request exceeds the available context size"}}', "text"),
    # The model.
    (404, "model 'x' not found", "model"),
    (404, 'model "x" not found, try pulling it first', "model"),
    (404, "model '' not found", "model"),
    # The queue.
    (503, "server busy, please try again.  maximum pending requests exceeded", "busy"),
    (500, "SERVER BUSY", "busy"),
    (500, "no slots available after 10 retries", "busy"),
    # What passes.
    (500, "llama runner process has terminated: exit status 2", "passing"),
    (500, "llama-server process has terminated: signal: killed", "passing"),
    (400, "llama runner process no longer running: -1", "passing"),
    (500, "llama-server process has terminated: CUDA error: out of memory", "passing"),
    (500, "model requires more system memory (5.6 GiB) than is available (1.2 GiB)", "passing"),
    (500, STOPPED, "passing"),
    (500, "unexpected server status: llm server loading model", "passing"),
    (503, '{"error":{"code":503,"message":"Loading model"}}', "passing"),
    (400, LOST + "EOF", "passing"),
    (400, LOST + "dial tcp 127.0.0.1:36147: connect: connection refused", "passing"),
    (400, LOST + "read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer", "passing"),
    (499, "request canceled", "passing"),
    (500, "timed out waiting for llama-server to start: context canceled", "passing"),
    # What lasts.
    (500, "json: unsupported value: NaN", "node"),
    (400, "failed to encode response: json: unsupported value: NaN", "node"),
    (400, "embedding contains NaN or Inf values", "node"),
    (500, "libcublas.so.12: cannot open shared object file: No such file or directory", "node"),
    (500, "llama-server binary not found (checked: /usr/lib/ollama)", "node"),
    (500, "llama-server process has terminated: error loading model: x", "node"),
    (500, "Deepseek2 does not support K-shift", "node"),
    (400, "Deepseek2 does not support K-shift", "node"),
    (403, "ollama cloud is disabled: remote model is unavailable", "node"),
    # What is unknown, or another's words.
    (400, "something new", None),
    (500, "invalid character '<' looking for beginning of value", None),
    (500, "x is required", None),
    (500, "unexpected eof of the moon", None),
    (404, "404 page not found", None),
    (400, "", None),
    # A message that quotes the request is known by its own words.
    (404, "model 'server busy' not found", "model"),
    (400, '"out of memory" does not support chat', "request"),
    (400, 'invalid think value: "connection refused" (must be ...)', "request"),
    (500, 'option "no such file or directory" must be of type integer', "request"),
    (400, '"geoffrey" does not support chat', "request"),
]


@pytest.mark.parametrize(("status", "message", "fault"), MESSAGES)
def test_whose_fault_a_message_reports(status: int, message: str, fault: FaultKind | None) -> None:
    assert fault_of(status, message) == fault
    assert fault_of(status, f"  {message.upper()}\n") == fault


@pytest.mark.parametrize("known", KNOWN_MESSAGES, ids=lambda known: "*".join(known.pieces))
def test_every_entry_is_sound(known: object) -> None:
    entry = KNOWN_MESSAGES[KNOWN_MESSAGES.index(known)]  # type: ignore[arg-type]
    assert entry.fault in get_args(FaultKind)
    assert entry.statuses
    assert all(400 <= status < 600 for status in entry.statuses)
    assert re.fullmatch(r"v0\.\d+\.\d+(-rc\d+)?", entry.version)
    assert entry.place
    text = "x".join(entry.pieces)
    assert text == text.lower()
    text = f"{'x' * text.startswith(' ')}{text}{'x' * text.endswith(' ')}"
    # No entry before it takes its message away.
    assert fault_of(min(entry.statuses), text) == entry.fault


def test_no_entry_is_there_twice() -> None:
    texts = [known.pieces for known in KNOWN_MESSAGES]
    assert len(set(texts)) == len(texts)


def test_only_the_beginning_of_a_message_is_compared() -> None:
    assert fault_of(500, "x" * MAX_CHARACTERS + "server busy") is None
    assert fault_of(500, "x" * (MAX_CHARACTERS - 11) + "server busy") == "busy"
