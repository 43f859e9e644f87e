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
    example: a body to try it with. query: parameters behind the "?", and what they are. parameter:
    the schema of one in the path. answers: content types of what comes with status 200 or `status`;
    returns: its schema, if it is JSON; parts: the schema of each part, if it is streamed. fails:
    statuses that it may have beside those that all have; otherwise: those whose body is no error,
    with its schema. is_asking: whether it asks nodes, which
    the headers of its answer name, and whose errors are passed on. is_admin: whether it is there
    only with `allow_admin`.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str = "Ollama"
    body: Mapping[str, Any] | None = None
    required: Sequence[str] = ()
    example: Mapping[str, Any] | None = None
    query: Mapping[str, str] = {}
    parameter: Mapping[str, Any] = {"type": "string"}
    answers: Sequence[str] = ("application/json",)
    returns: Mapping[str, Any] = {}
    parts: Mapping[str, Any] = {}
    status: int = 200
    fails: Sequence[int] = ()
    otherwise: Mapping[int, Mapping[str, Any]] = {}
    is_asking: bool = False
    is_admin: bool = False
