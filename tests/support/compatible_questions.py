"""Minimal requests to the OpenAI- and Anthropic-compatible APIs."""

from __future__ import annotations

import json
from typing import Any

from aiosollol.wire import compatible_apis
from aiosollol.wire.translation import Question, Stamp

STAMP = Stamp("1", 1_795_251_719)


PATHS = list(compatible_apis.READERS)


MESSAGES = [{"role": "user", "content": "hello"}]


SMALLEST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": MESSAGES},
    "/v1/completions": {"model": "m", "prompt": "hello"},
    "/v1/responses": {"model": "m", "input": "hello"},
    "/v1/messages": {"model": "m", "messages": MESSAGES, "max_tokens": 6},
}


def question(path: str, **more: Any) -> Question:
    return compatible_apis.READERS[path](json.dumps({**SMALLEST[path], **more}).encode())
