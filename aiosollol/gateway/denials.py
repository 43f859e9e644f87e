"""What the guard refuses, in the words of the API that the client speaks."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping

import orjson
from aiohttp import web

from aiosollol.wire import anthropic, dialects
from aiosollol.wire.asked import Refusal

_OPENAI_WORDS: Mapping[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    413: ("invalid_request_error", "request_too_large"),
    408: ("invalid_request_error", "request_timeout"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


def not_allowed(model: str) -> str:
    """The error for a model that a key may not use; the same whether the model exists or not."""
    return f"this key may not use the model {model[:80]!r}"


def denied(
    path: str,
    status: int,
    message: str,
    *,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """An error of `status`: Ollama's form, OpenAI's below /v1, or Anthropic's for /v1/messages.

    retry_after: seconds after which it may be tried again; clients want whole ones, at least 1.
    """
    told = dict(headers or {})
    if retry_after is not None:
        told["Retry-After"] = str(max(1, math.ceil(retry_after)))
    kind = "application/json"
    is_openai = path.startswith("/v1/") and not path.startswith(anthropic.PATH)
    if is_openai and status in _OPENAI_WORDS:
        word, code = _OPENAI_WORDS[status]
        error = {"message": message, "type": word, "param": None, "code": code}
        body = orjson.dumps({"error": error})
    else:
        answer = dialects.refuse(path, Refusal(status, message), secrets.token_hex(12))
        body, kind = answer.body, answer.content_type
    return web.Response(status=status, body=body, headers={"Content-Type": kind, **told})
