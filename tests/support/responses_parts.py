"""Items and answers for tests of OpenAI's responses."""

from __future__ import annotations

from typing import Any

import orjson

from aiosollol.wire.openai import responses

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CALLED = {"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}


def read(given: Any = "hello", **more: Any) -> responses.ResponseQuestion:
    body = {"model": "m", "input": given, **more}
    return responses.read_responses(orjson.dumps(body))
