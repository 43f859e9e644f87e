"""The table of endpoints, of which the router and the OpenAPI document are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Endpoint(NamedTuple):
    """One method of one path.

    summary: what it does, in a line. tag: what it is listed under. body: the fields of a JSON body
    and their schemas; None if there is no body. required: those of them that must be there.
    query: parameters behind the "?", and what they are. answers: content types of what comes with
    status 200 or `status`. is_admin: whether it is there only with `allow_admin`.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str = "Ollama"
    body: Mapping[str, Any] | None = None
    required: Sequence[str] = ()
    query: Mapping[str, str] = {}
    answers: Sequence[str] = ("application/json",)
    status: int = 200
    is_admin: bool = False
