"""Messages and answers for tests of Anthropic's API."""

from __future__ import annotations

from typing import Any

import orjson

from aiosollol.wire.anthropic import messages as anthropic

USER = {"role": "user", "content": "hello"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
CALLED = {"id": "toolu_1", "function": {"name": "f", "arguments": {"a": 1}}}


def read(*messages: Any, **more: Any) -> anthropic.MessageQuestion:
    body = {"model": "m", "messages": messages or [USER], "max_tokens": 6, **more}
    return anthropic.read_messages(orjson.dumps(body))
