"""Any bytes for everything that reads bytes of clients, nodes, files and the network.

A reader returns, or raises its documented error; it never takes long. Valid inputs are changed at
random: `nox -s fuzz` does so for ten minutes, the test suite for a moment.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiosollol.core.address import Address, parse_ollama_host
from aiosollol.core.durations import parse_duration
from aiosollol.core.model_names import full_name, qualified_name, shortest_name
from aiosollol.errors import SollolError
from aiosollol.gateway.middleware.model_access import models_used
from aiosollol.telemetry.tracing import read_trace
from aiosollol.wire.agent import load_report
from aiosollol.wire.announcement import read_announcement
from aiosollol.wire.anthropic import messages
from aiosollol.wire.compatible_apis import READERS
from aiosollol.wire.content_coding import BadContent, ContentDecoder
from aiosollol.wire.http1 import BadResponse, ResponseParser
from aiosollol.wire.json_slices import BrokenJSON, read_value
from aiosollol.wire.ollama import client, embeddings, server_requests
from aiosollol.wire.ollama.timings import read_timings
from aiosollol.wire.retry_after import read_retry_after

if sys.platform != "win32":
    import resource

SECONDS = float(os.environ.get("AIOSOLLOL_FUZZ_SECONDS", "0"))
"""For each reader; 0 for one round of examples."""

EXAMPLES = 100
MOST_CPU = 0.1
MOST_MEMORY = 300 << 20

CHAT = (
    b'{"model":"m:1b","messages":[{"role":"user","content":"hi","images":["AAAA"]}],"stream":true}'
)
EMBED = b'{"model":"all-minilm","input":["a","b\\u00e9"],"dimensions":4,"keep_alive":"5m"}'
GENERATE = (
    b'{"model":"m","prompt":"x","options":{"num_ctx":8,"stop":["a"]},"format":{"type":"object"}}'
)
OPENAI = (
    b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"}]},{"role":'
    b'"assistant","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{}"}}]}],"stop":"a",'
    b'"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"seed":1}'
)
ANTHROPIC = (
    b'{"model":"m","max_tokens":9,"system":[{"type":"text","text":"s"}],"messages":[{"role":"user",'
    b'"content":[{"type":"tool_result","tool_use_id":"t","content":"x"},{"type":"image","source":'
    b'{"type":"base64","media_type":"image/png","data":"AAAA"}}]}],"thinking":{"type":"enabled"}}'
)
RESPONSES = (
    b'{"model":"m","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":'
    b'"x"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}],"text":{"format":'
    b'{"type":"json_schema","name":"n","schema":{}}},"reasoning":{"effort":"low"}}'
)
VECTORS = b'{"model":"m","embeddings":[[0.1,-2e-3],[1,2]],"prompt_eval_count":4}'
DATA = (
    b'{"object":"list","data":[{"index":0,"embedding":[0.5,1]},{"index":1,"embedding":"AAAAAAAAgD8="}'
    b'],"usage":{"prompt_tokens":2}}'
)
TAGS = (
    b'{"models":[{"name":"m:latest","model":"m:latest","digest":"sha256:ab","size":5,"details":'
    b'{"family":"bert","embedding_length":8},"expires_at":"2026-01-01T00:00:00Z","size_vram":3}]}'
)
TIMES = (
    b'{"total_duration":5,"load_duration":1,"prompt_eval_count":2,"eval_count":3,"eval_duration":4}'
)
HTTP = (
    b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 Not Found\r\nConnection: close\r\n\r\nx",
)
REPORT = (
    b'{"machine":"m","version":"1","cpu_load":0.5,"memory_total":8,"memory_free":4,"gpus":[{"name":'
    b'"g","load":0.1,"memory_total":8,"memory_free":null}]}'
)

TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"true", b"-", b"e9", b"1e400"),
    *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\t", b" "),
    *(b"1" * 5000, b"9" * 19, b"18446744073709551616", b"-1", b"0.0", b"NaN", b"Infinity"),
    *(b"[" * 600, b'{"a":' * 600, b"\\u0000", b"sha256:", b"../", b"%2e", b"[::1]", b"65536"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffff\r\n"),
]


def read_response(data: bytes) -> None:
    """All at once, then byte by byte: with the same result."""
    ends = []
    for size in (len(data) or 1, 1):
        parser, body, problem = ResponseParser(), b"", ""
        try:
            for at in range(0, len(data), size):
                body += parser.feed(data[at : at + size])
        except BadResponse as error:
            problem = str(error)
        ends.append((parser.status, dict(parser.headers), parser.is_complete, bool(problem)))
    assert ends[0] == ends[1]


def read_lines(data: bytes) -> None:
    splitter = client.LineSplitter()
    lines = [line for at in range(0, len(data), 7) for line in splitter.feed(data[at : at + 7])]
    assert b"".join(lines).count(b"\n") == 0
    for line in [*lines, splitter.rest()]:
        client.load("node", line)


def read_compressed(data: bytes) -> None:
    for coding in ("gzip", "deflate"):
        decoder = ContentDecoder(coding)
        try:
            assert len(decoder.decode(data, 1 << 20)) <= 1 << 20
        except BadContent:
            continue


def in_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    """A reader of text as one of bytes."""
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


class Reader(NamedTuple):
    """What is tried. seeds: valid inputs."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


JSON = (CHAT, EMBED, GENERATE, OPENAI, ANTHROPIC, RESPONSES, VECTORS, DATA, TAGS)
READERS_OF = {
    "http1": Reader(read_response, HTTP),
    "ndjson": Reader(read_lines, (b'{"a":1}\n{"b":[2]}\n\n{"done":true}\n', TIMES + b"\n" + CHAT)),
    "json": Reader(read_value, JSON),
    "embed": Reader(server_requests.read_embed, (EMBED,)),
    "embeddings": Reader(server_requests.read_embeddings, (EMBED, GENERATE)),
    "openai embeddings": Reader(server_requests.read_openai_embeddings, (EMBED,)),
    "chat": Reader(server_requests.read_chat, (CHAT, OPENAI)),
    "generate": Reader(server_requests.read_generate, (GENERATE,)),
    "show": Reader(server_requests.read_show, (GENERATE,)),
    "copy": Reader(server_requests.read_copy, (b'{"source":"a","destination":"b"}',)),
    **{path: Reader(read, (OPENAI, ANTHROPIC, RESPONSES, CHAT)) for path, read in READERS.items()},
    "count tokens": Reader(messages.count_tokens, (ANTHROPIC,)),
    "models used": Reader(lambda body: models_used(body, path="/api/chat", default="m"), JSON),
    "vectors": Reader(lambda body: embeddings.load_embeddings("node", body, 2), (VECTORS, DATA)),
    "one vector": Reader(lambda body: embeddings.check_one("node", body, 2), (VECTORS, DATA)),
    "tags": Reader(lambda body: client.load_tags("node", body), (TAGS,)),
    "ps": Reader(lambda body: client.load_ps("node", body), (TAGS,)),
    "version": Reader(lambda body: client.load_version("node", body), (b'{"version":"0.12.7"}',)),
    "error": Reader(
        lambda body: client.error_for("node", 400, body, path="/api/chat"),
        (b'{"error":"illegal base64 data"}', b'{"error":{"message":"x","type":"y"}}', b"<html>"),
    ),
    "timings": Reader(lambda body: read_timings(client.load("node", body)), (TIMES,)),
    "agent": Reader(lambda body: load_report("node", body), (REPORT,)),
    "announcement": Reader(
        lambda data: read_announcement("n", {b"version": data, b"path": data, b"agent": data}),
        (b"0.12", b"/ollama", b"11435"),
    ),
    "compressed": Reader(
        read_compressed, (bytes.fromhex("1f8b08000000000000ffcb48cdc9c907008610a63605000000"),)
    ),
    "address": Reader(
        in_text(Address.parse), (b"http://10.0.0.2:11434/x", b"[fe80::1%eth0]:80", b"gpu-box")
    ),
    "OLLAMA_HOST": Reader(in_text(parse_ollama_host), (b"0.0.0.0:11434", b'"https://h/p"', b":80")),
    "duration": Reader(in_text(parse_duration), (b"1h30m", b"-1.5us", b"24h0m0.000001s")),
    "model name": Reader(
        in_text(lambda name: (full_name(name), shortest_name(name), qualified_name(name))),
        (b"registry.ollama.ai/library/m:latest", b"hf.co/a/b:q4", b"M"),
    ),
    "retry-after": Reader(
        in_text(lambda value: read_retry_after(value, 0.0)),
        (b"120", b"Fri, 31 Dec 1999 23:59:59 GMT"),
    ),
    "traceparent": Reader(
        in_text(lambda value: read_trace([value], [value])),
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"a=1,b=2"),
    ),
}


@st.composite
def inputs(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed, changed in some places."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        begin = draw(st.integers(0, len(data)))
        end = begin + draw(st.integers(0, 20))
        change = draw(st.sampled_from(["insert", "replace", "repeat", "delete", "cut", "splice"]))
        if change == "insert":
            data[begin:begin] = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
        elif change == "replace":
            data[begin:end] = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
        elif change == "repeat":
            data[begin:end] = data[begin:end] * draw(st.sampled_from([2, 3, 100, 2000]))
        elif change == "delete":
            del data[begin:end]
        elif change == "cut":
            del data[begin:]
        else:
            other = draw(st.sampled_from(seeds))
            data[begin:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


def check(read: Callable[[bytes], object], data: bytes) -> None:
    """Raises AssertionError if it takes too long three times, and what else it should not raise."""
    for _ in range(3):
        began = time.thread_time()
        with contextlib.suppress(SollolError, BadResponse, BrokenJSON):
            read(data)
        if time.thread_time() - began <= MOST_CPU:
            return
    raise AssertionError(f"{len(data):,} bytes take over {MOST_CPU} s")


def memory_used() -> int:
    """The most bytes that this process has had so far."""
    if sys.platform == "win32":
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


@pytest.mark.parametrize("name", READERS_OF)
def test_any_bytes(name: str) -> None:
    reader = READERS_OF[name]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(inputs(reader.seeds))
    def one_round(data: bytes) -> None:
        check(reader.read, data)

    before, end = memory_used(), time.monotonic() + SECONDS
    one_round()
    while time.monotonic() < end:
        one_round()
    assert memory_used() - before < MOST_MEMORY


@pytest.mark.parametrize("name", READERS_OF)
def test_the_seeds_are_valid(name: str) -> None:
    """Some of them: where all fail, the changes would never get far."""
    reader, valid = READERS_OF[name], 0
    for seed in reader.seeds:
        try:
            reader.read(seed)
        except SollolError:
            continue
        valid += 1
    assert valid
