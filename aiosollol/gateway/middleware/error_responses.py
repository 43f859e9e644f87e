"""Error responses: the pool's errors in Ollama's words, the guard's in the form of each API."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson
from aiohttp import web

from aiosollol.errors import (
    BadRequest,
    BatchError,
    InvalidInput,
    LimitExceeded,
    ModelMissing,
    ModelNotFound,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NoNodeAvailable,
    PoolClosed,
    PoolSaturated,
    QueueFull,
    ResponseError,
    ServerBusy,
    SollolError,
    StorageError,
    UnknownJob,
)
from aiosollol.wire import compatible_apis
from aiosollol.wire.anthropic import messages
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.go_json import GoJSONError, loads
from aiosollol.wire.ollama.server_requests import Refusal

_SECONDS = 1  # Retry-After when there is no slot
_OPENAI_WORDS: Mapping[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    413: ("invalid_request_error", "request_too_large"),
    408: ("invalid_request_error", "request_timeout"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class ErrorResponse(NamedTuple):
    """A refusal, and the seconds after which to retry; 0 if a retry would not help."""

    refusal: Refusal
    retry_after: int = 0


def trouble(error: SollolError, path: str, model: str = "") -> ErrorResponse:
    """The response to `error` for a client of `path`.

    model: the requested model, as the client wrote it.
    """
    match error:
        case Refusal():
            return ErrorResponse(error)
        case ModelNotFound():
            return ErrorResponse(_unknown(path, model or error.model))
        case PoolSaturated():
            return ErrorResponse(Refusal(503, str(error)), _SECONDS)
        case QueueFull():
            return ErrorResponse(Refusal(429, str(error)), max(1, round(error.retry_after)))
        case UnknownJob():
            return ErrorResponse(Refusal(404, str(error)))
        case BatchError():
            return trouble(next(iter(error.errors.values())), path, model)
        case LimitExceeded():
            return ErrorResponse(Refusal(413, str(error)))
        case InvalidInput():
            return ErrorResponse(Refusal(400, str(error)))
        case StorageError():
            return _of_storage(error)
        case PoolClosed():
            return ErrorResponse(Refusal(503, str(error)), _SECONDS)
        case NoNodeAvailable():
            return _no_node(error, path, model)
        case NodeError():
            return _of_node(error, path, model)
        case _:
            return ErrorResponse(Refusal(500, str(error)))


_OF_STORAGE = {
    "full": (507, "its disk is full; free some space on the gateway's machine", 0),
    "locked": (503, "another program has locked its file; try again", _SECONDS),
    "damaged": (503, "its file is damaged; see the gateway's log", 0),
    "read-only": (503, "its file cannot be written; see the gateway's log", 0),
}


def _of_storage(error: StorageError) -> ErrorResponse:
    """Without the name of the file, which is only for the log."""
    status, words, seconds = _OF_STORAGE.get(
        error.reason, (503, "its file cannot be used; see the gateway's log", 0)
    )
    return ErrorResponse(Refusal(status, f"the document queue does not work: {words}"), seconds)


def _no_node(error: NoNodeAvailable, path: str, model: str) -> ErrorResponse:
    """The response to the last attempt; 503 if there was no node to try."""
    if not error.attempts:
        return ErrorResponse(Refusal(503, str(error)), _SECONDS)
    return _of_node(error.attempts[-1], path, model)


def _of_node(error: NodeError, path: str, model: str) -> ErrorResponse:
    if isinstance(error, ModelMissing):
        return ErrorResponse(_unknown(path, model) if model else Refusal(404, error.message))
    if isinstance(error, ServerBusy):
        return ErrorResponse(Refusal(503, error.message), _pause(error))
    if isinstance(error, NodeUnavailable):
        # 408 would blame the client, which sent all of its request.
        status = 503 if error.status == 408 else error.status
        return ErrorResponse(Refusal(status, error.message), _pause(error))
    if isinstance(error, BadRequest):
        return ErrorResponse(Refusal(error.status, error.message))
    if isinstance(error, ResponseError):
        return ErrorResponse(Refusal(max(error.status, 500), error.message))
    status = 504 if isinstance(error, NodeTimeout) else 502
    return ErrorResponse(Refusal(status, str(error)))


def _pause(error: ResponseError) -> int:
    """Whole seconds to wait: as the node says, or one."""
    return max(_SECONDS, math.ceil(error.retry_after or 0.0))


def _unknown(path: str, model: str) -> Refusal:
    """A model that no node has, in the words of each endpoint."""
    if "embed" in path:
        return server_responses.unknown_model_try_pulling(model)
    return server_responses.unknown_model(model)


def message_of(error: SollolError) -> str:
    """The message of an error after part of the response: the node's own where there is one."""
    cause = error.__cause__
    if isinstance(cause, ResponseError):
        return cause.message
    return error.message if isinstance(error, ResponseError) else str(error)


def json_object(body: bytes) -> dict[str, Any]:
    """The fields of a request that must be a JSON object. Raises Refusal."""
    try:
        fields = loads(body)
    except GoJSONError as error:
        raise Refusal(400, "missing request body" if str(error) == "EOF" else str(error)) from error
    if not isinstance(fields, dict):
        raise Refusal(400, "the request must be a JSON object")
    return fields


# ---- refusals by the guard


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
    """An error response in the form of Ollama, OpenAI (below /v1) or Anthropic (/v1/messages).

    retry_after: seconds until a retry, rounded up to whole ones, at least 1.
    """
    sent = dict(headers or {})
    if retry_after is not None:
        sent["Retry-After"] = str(max(1, math.ceil(retry_after)))
    kind = "application/json"
    is_openai = path.startswith("/v1/") and not path.startswith(messages.PATH)
    if is_openai and status in _OPENAI_WORDS:
        word, code = _OPENAI_WORDS[status]
        error = {"message": message, "type": word, "param": None, "code": code}
        body = orjson.dumps({"error": error})
    else:
        answer = compatible_apis.refuse(path, Refusal(status, message), secrets.token_hex(12))
        body, kind = answer.body, answer.content_type
    return web.Response(status=status, body=body, headers={"Content-Type": kind, **sent})
