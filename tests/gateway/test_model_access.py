"""Which models a request will use, and which requests leave that open."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiosollol.gateway.middleware.model_access import models_used
from aiosollol.wire.ollama.server_requests import Refusal

EMBED, BATCH, CHAT = "/api/embed", "/api/embed/batch", "/api/chat"


@pytest.mark.parametrize(
    ("path", "fields", "models"),
    [
        (CHAT, {"model": "a"}, ["a"]),
        (CHAT, {"MODEL": "a"}, ["a"]),
        (CHAT, {"model": "a", "name": "b"}, ["a", "b"]),
        (CHAT, {"model": "a", "name": None}, ["a"]),
        (CHAT, {"model": ""}, [""]),
        (CHAT, {}, []),
        (CHAT, {"from": "a", "model": "b"}, ["a", "b"]),
        ("/api/copy", {"source": "a", "destination": "b"}, ["a", "b"]),
        ("/api/copy", {"\u017fource": "a", "de\u017ftination": "b"}, ["a", "b"]),
        (CHAT, {"model": "a", "tools": [{"name": "b"}], "options": {"model": "c"}}, ["a"]),
        (CHAT, {"model": "a", "messages": [{"content": '"model":"b","model":"c"'}]}, ["a"]),
        (BATCH, {}, ["default"]),
        (BATCH, {"model": ""}, ["default"]),
        (BATCH, {"model": None}, ["default"]),
        (BATCH, {"MODEL": "a"}, ["a", "default"]),
        (BATCH, {"model": "a"}, ["a"]),
        (EMBED, {"text": "x"}, ["default"]),
        (EMBED, {"text": "x", "model": "a"}, ["a"]),
        (EMBED, {"text": "x", "input": "y"}, []),
        (EMBED, {"input": "x"}, []),
        (CHAT, [], []),
        (CHAT, "model", []),
    ],
)
def test_models(path: str, fields: Any, models: list[str]) -> None:
    for body in (json.dumps(fields).encode(), json.dumps(fields, indent=2).encode()):
        assert sorted(models_used(body, path, "default")) == sorted(models)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"a"}',
        b'{"model":"a","model":"b"}',
        b'{"model":"a","Model":"b"}',
        b'{"model":"a","input":["\\"x"],"m\\u006fdel" :"b"}',
        b'{"name":"a","x":{"y":[{}]},"name":null}',
        b'{"from":"a","from":"b"}',
        '{"source":"a","\u017fource":"b"}'.encode(),
        b' {"x":"}","model":"a","y":"\\\\","model"\n:\t"b"}',
        b'{"model":"a","x":' + b"[" * 500 + b"]" * 500 + b',"model":"b"}',
    ],
)
def test_a_model_that_is_named_twice(body: bytes) -> None:
    with pytest.raises(Refusal, match="twice") as caught:
        models_used(body, CHAT, "default")
    assert caught.value.status == 403


@pytest.mark.parametrize("model", [7, ["a"], {"a": 1}, True])
def test_a_model_that_is_no_text(model: Any) -> None:
    with pytest.raises(Refusal, match="must name its model"):
        models_used(json.dumps({"model": model}).encode(), CHAT, None)


@pytest.mark.parametrize("body", [b"", b"{", b"null", b'"' * 9, b"\xff", b'{"model"'])
def test_what_is_no_request(body: bytes) -> None:
    assert models_used(body, CHAT, "default") == []
