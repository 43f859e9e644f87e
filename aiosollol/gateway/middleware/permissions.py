"""The permissions of a request's API key. A request without a key may see and use everything."""

from __future__ import annotations

from aiohttp import web

from aiosollol.gateway.middleware.error_responses import not_allowed
from aiosollol.gateway.middleware.guard import KEY
from aiosollol.wire.ollama.server_requests import Refusal


def owner_of(request: web.Request) -> str | None:
    """The owner of jobs that this request submits; None without a key."""
    key = request.get(KEY)
    return None if key is None else key.owner


def sees_only(request: web.Request) -> str | None:
    """The owner whose jobs this request sees; None if it sees all jobs."""
    key = request.get(KEY)
    return None if key is None or key.is_admin else key.owner


def may_use(request: web.Request, model: str) -> bool:
    """Whether the key of this request may use `model`."""
    key = request.get(KEY)
    return key is None or key.may_use(model)


def check_model(request: web.Request, model: str) -> None:
    """Raises Refusal, with status 403, if the key of this request may not use `model`."""
    if not may_use(request, model):
        raise Refusal(403, not_allowed(model))
