"""The gateway as an aiohttp application: `make_app`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from aiosollol.core.redaction import summary
from aiosollol.errors import SollolError
from aiosollol.gateway.bodies import (
    REQUEST_ID,
    STATE,
    RequestState,
    add_workers,
    whole,
)
from aiosollol.gateway.endpoints.admin import AdminEndpoints
from aiosollol.gateway.endpoints.batch_jobs import BatchJobs
from aiosollol.gateway.endpoints.compatible import CompatibleEndpoints
from aiosollol.gateway.endpoints.embedding import EmbeddingEndpoints
from aiosollol.gateway.endpoints.ollama import OllamaEndpoints
from aiosollol.gateway.endpoints.openapi import DocumentationEndpoints
from aiosollol.gateway.endpoints.sollol import SollolEndpoints
from aiosollol.gateway.middleware.error_responses import ErrorResponse, trouble
from aiosollol.gateway.middleware.model_access import DEFAULT_MODEL
from aiosollol.gateway.options import GatewayOptions, Served
from aiosollol.gateway.request_content import ACCEPTED, decode
from aiosollol.net.error_log import ErrorLog, origin_of, traceback_of
from aiosollol.net.http_server import ContentFreeLogger, fault_of, has_left
from aiosollol.ports import CANCELLED, Tracing
from aiosollol.telemetry.tracing import TRACEPARENT, TRACESTATE, read_trace
from aiosollol.wire import compatible_apis
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse

if TYPE_CHECKING:
    from aiosollol.autobatch import AutoBatch
    from aiosollol.pool.facade import OllamaPool

log = logging.getLogger("aiosollol")

OnRequest = Callable[[Served], None]

_MOST_TRACED = 64
_LEFT = 499  # nginx's status for a client that left before the answer


def make_app(
    pool: OllamaPool,
    *,
    options: GatewayOptions | None = None,
    autobatch: AutoBatch | None = None,
    middlewares: Sequence[Middleware] = (),
    on_request: OnRequest | None = None,
) -> web.Application:
    """An application that serves Ollama's, OpenAI's and Anthropic's APIs from the nodes of a pool.

    pool: an open pool; the application does not close it. Its `tracing` also traces requests.
    autobatch: the document queue, not closed either; without it, documents cannot be queued.
    middlewares: run around every endpoint, inside the error handling, so they may raise `Refusal`.
    on_request: called after every request.

    Serve it with ``handler_cancellation=True``, so that a client's disconnect cancels its work on
    the node.
    """
    options = options or GatewayOptions()
    native, embedding = OllamaEndpoints(pool), EmbeddingEndpoints(pool, options)
    routes = [
        *native.routes(),
        *embedding.routes(),
        *CompatibleEndpoints(pool, native).routes(),
        *SollolEndpoints(pool).routes(),
        *BatchJobs(pool, autobatch, options).routes(),
        *(AdminEndpoints(pool).routes() if options.allow_admin else ()),
    ]
    routes += DocumentationEndpoints(routes).routes()
    errors = ErrorLog("gateway")
    app = web.Application(
        middlewares=[
            _Front(options, on_request, pool.gateway_access.tracing).middleware(),
            *middlewares,
            _content(options.max_body_bytes),
        ],
        client_max_size=options.max_body_bytes,
        # Not by aiohttp, which takes gzip that is cut short for complete.
        handler_args={"logger": ContentFreeLogger(errors), "auto_decompress": False},
    )
    add_workers(app)
    if options.batch_model is not None:
        app[DEFAULT_MODEL] = options.batch_model
    for each in routes:  # `add_routes` would add a HEAD to every GET
        app.router.add_route(each.method, each.path, each.handler)

    async def close(app: web.Application) -> None:
        await embedding.aclose()
        errors.close()

    app.on_cleanup.append(close)
    return app


def _content(most: int) -> Middleware:
    """The innermost middleware: the content of an encoded body, of up to `most` bytes."""

    @web.middleware
    async def content(request: web.Request, handler: Handler) -> web.StreamResponse:
        if hdrs.CONTENT_ENCODING in request.headers:
            await decode(request, most)
        return await handler(request)

    return content


class _Front:
    """The outermost middleware: gives each request an id, and turns errors into responses."""

    def __init__(
        self, options: GatewayOptions, on_request: OnRequest | None, tracing: Tracing
    ) -> None:
        self._options = options
        self._on_request = on_request
        self._tracing = tracing
        self._traced: set[str] = set()  # origins of bugs whose traceback was logged
        self._prefix = token_hex(6)
        self._numbers = count(1)

    def middleware(self) -> Middleware:
        """This as an aiohttp middleware, which must be a function, not a bound method."""

        @web.middleware
        def front(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
            return self._serve(request, handler)

        return front

    async def _serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        unique = f"{self._prefix}{next(self._numbers)}"
        state = request[STATE] = RequestState(_id(request, unique), unique)
        began = time.monotonic()
        status = _LEFT
        route = _route(request)
        serving = self._tracing.serve(_trace(request), request.method, route, request.path)
        try:
            response = await self._answered(request, handler, state)
            status = response.status
            if not response.prepared:
                response.headers[REQUEST_ID] = state.id
            return response
        finally:
            if serving is not None:
                is_left = status == _LEFT
                problem = state.problem or (CANCELLED if is_left else "")
                serving.end(None if is_left else status, problem)
            if self._on_request is not None:
                seconds = time.monotonic() - began
                self._on_request(Served(route, request.method, status, seconds, state.node))

    async def _answered(
        self, request: web.Request, handler: Handler, state: RequestState
    ) -> web.StreamResponse:
        is_unknown = isinstance(request.match_info.http_exception, web.HTTPNotFound)
        place = await _without_slash(request) if is_unknown and request.path[-1:] == "/" else ""
        try:
            return await handler(request)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            if place and isinstance(error, web.HTTPNotFound):
                # As Ollama does (gin's RedirectTrailingSlash).
                moved = 301 if request.method == "GET" else 307
                return whole(HttpResponse(moved, "", b""), {"Location": place})
            if has_left(request, error):
                raise ConnectionResetError("the client has left") from error
            if not state.has_begun:
                return self._error_response(error, request, state)
            # Part of the answer is sent already: abort the connection, so that the client does not
            # take it for complete.
            where = (state.id, _route(request) or "no endpoint")
            log.warning("request %s to %s failed in mid-response: %s", *where, summary(error))
            state.problem = type(error).__name__
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the answer could not be finished") from error

    def _error_response(
        self, error: Exception, request: web.Request, state: RequestState
    ) -> web.StreamResponse:
        """The response for an error."""
        path = request.path
        match error:
            case SollolError():
                found = trouble(error, path, state.model)
            case web.HTTPMethodNotAllowed():
                allowed = ", ".join(sorted(error.allowed_methods))
                return whole(server_responses.method_not_allowed(), {"Allow": allowed})
            case web.HTTPNotFound():
                return whole(server_responses.not_found())
            case web.HTTPRequestEntityTooLarge():
                most = self._options.max_body_bytes
                found = ErrorResponse(Refusal(413, f"the request is larger than {most} bytes"))
            case web.RequestPayloadError():
                found = ErrorResponse(Refusal(400, f"the request was refused: {fault_of(error)}"))
                response = self._refused(found, path, state)
                response.force_close()  # the rest of the connection cannot be parsed
                return response
            case web.HTTPException():
                found = ErrorResponse(Refusal(error.status, error.reason))
            case _:
                # The registered path, and no message: the actual ones may contain user content.
                where = (state.id, _route(request) or "no endpoint")
                origin = origin_of(error)
                log.error("request %s to %s failed, which is a bug: %s", *where, origin)
                if origin not in self._traced and len(self._traced) < _MOST_TRACED:
                    self._traced.add(origin)
                    log.error("traceback of request %s:\n%s", state.id, traceback_of(error))
                message = f"internal error, see the log for request {state.id}"
                found = ErrorResponse(Refusal(500, message))
        return self._refused(found, path, state)

    def _refused(self, found: ErrorResponse, path: str, state: RequestState) -> web.Response:
        headers: dict[str, Any] = {}
        if found.refusal.status == 415:
            headers |= ACCEPTED
        if found.retry_after:
            headers["Retry-After"] = str(found.retry_after)
        return whole(compatible_apis.refuse(path, found.refusal, state.unique), headers)


def _route(request: web.Request) -> str:
    """The registered path, "" if there is none."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical


async def _without_slash(request: web.Request) -> str:
    """Where the endpoint is that a path with a slash at its end is meant for; "" if there is none.

    To be called before the body is read, after which a request cannot be cloned.
    """
    url = request.rel_url
    path = url.raw_path[:-1]
    match = await request.app.router.resolve(
        request.clone(rel_url=url.with_path(path, encoded=True))
    )
    if not path or match.http_exception is not None:
        return ""
    return f"{path}?{url.raw_query_string}" if url.raw_query_string else path


def _trace(request: web.Request) -> Mapping[str, str] | None:
    """The trace that the client's request belongs to, if its headers are valid."""
    headers = request.headers
    if TRACEPARENT not in headers:
        return None
    return read_trace(headers.getall(TRACEPARENT), headers.getall(TRACESTATE, ()))


def _id(request: web.Request, unique: str) -> str:
    """The client's own id for the request if it is valid, else `unique`."""
    given = request.headers.get(REQUEST_ID)
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return unique
