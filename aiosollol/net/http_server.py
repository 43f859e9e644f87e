"""Serving with aiohttp, with content-free error handling: see `error_log`.

aiohttp quotes malformed requests, which may hold keys and prompts, in its log and in its answers.
Every server of this package uses the connections defined here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from aiohttp import ClientConnectionError, hdrs, http_exceptions, web
from aiohttp.http import SERVER_SOFTWARE, RawRequestMessage

from aiosollol.core.redaction import without_userinfo
from aiosollol.errors import InvalidInput
from aiosollol.net.error_log import ErrorLog

_BACKLOG = 128

# The first match counts. The wording is ours; none of the request's.
_FAULTS: tuple[tuple[type[Exception], str], ...] = (
    (http_exceptions.LineTooLong, "line too long"),
    (http_exceptions.InvalidHeader, "malformed header"),
    (http_exceptions.BadHttpMethod, "malformed method, or not HTTP"),
    (http_exceptions.BadStatusLine, "malformed request line"),
    (http_exceptions.InvalidURLError, "malformed target"),
    (http_exceptions.ContentEncodingError, "undecodable Content-Encoding"),
    (http_exceptions.TransferEncodingError, "malformed chunk"),
    (http_exceptions.ContentLengthError, "body shorter than its Content-Length"),
    (http_exceptions.PayloadEncodingError, "malformed body"),
)
# Other exceptions can only be told apart by their message, which is searched and never shown.
_SIGNS = (
    ("chunk", "malformed chunk"),
    ("content-length", "wrong Content-Length"),
    ("transfer-encoding", "wrong Transfer-Encoding"),
    ("'host'", "no Host header, or two"),
    ("too many headers", "too many headers"),
    ("header", "malformed header"),
)
_NO_RESPONSE = "a handler returned something else than a response, which is a bug"
_FAILED = "500 Internal Server Error\n\nServer got itself in trouble"


def fault_of(error: BaseException | None) -> str:
    """What is malformed in a request, in our own words; "" if `error` is not about that."""
    if isinstance(error, web.RequestPayloadError):
        return fault_of(error.__cause__) or "malformed body"
    if not isinstance(error, http_exceptions.HttpProcessingError):
        return ""
    for kind, words in _FAULTS:
        if isinstance(error, kind):
            return words
    about = str(error.message).partition(":")[0].lower()
    return next((words for sign, words in _SIGNS if sign in about), "malformed")


def has_left(request: web.BaseRequest, error: BaseException) -> bool:
    """Whether `error` only says that the client has left.

    A lost connection is a ClientConnectionError for a task that waits to write on, and a write to
    a closed one a RuntimeError or an OSError of the event loop.
    """
    if isinstance(error, ConnectionError | ClientConnectionError):
        return True
    transport = request.transport
    is_gone = transport is None or transport.is_closing()
    return is_gone and isinstance(error, RuntimeError | OSError)


def note(errors: ErrorLog, error: BaseException, peer: str) -> None:
    """Log what went wrong on a connection, unless the client just left."""
    if isinstance(error, ConnectionError | ClientConnectionError):  # the client has left
        return
    if fault := fault_of(error):
        errors.write(f"a request was refused ({fault})", peer)
    else:
        errors.write_bug(error, peer)


async def hide_versions(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """A handler of `on_response_prepare`: aiohttp's Server names its version and Python's."""
    if response.headers.get(hdrs.SERVER) == SERVER_SOFTWARE:
        del response.headers[hdrs.SERVER]


class ContentFreeLogger:
    """Replaces aiohttp's logger in an application that is served by other means.

    ::

        web.Application(handler_args={"logger": ContentFreeLogger(errors)})

    The log is then the same as with `HttpConnection`; the answers are still aiohttp's, which quote
    malformed input.
    """

    def __init__(self, errors: ErrorLog) -> None:
        self._errors = errors

    def exception(self, message: str, *args: object, exc_info: object = None) -> None:
        """Log only the exception: the message may quote an answer."""
        if isinstance(exc_info, BaseException):
            note(self._errors, exc_info, str(args[0]) if args else "")
        else:
            self._errors.write(_NO_RESPONSE, level=logging.ERROR)

    def debug(self, *args: object, **more: object) -> None:
        """Nothing: may carry an exception, too."""

    def warning(self, *args: object, **more: object) -> None:
        """Nothing: it is about options that aiohttp does not know."""


class HttpConnection(web.RequestHandler):
    """aiohttp's connection, which reports malformed requests without quoting them.

    errors: where they are logged. options: those of `web.RequestHandler`.
    """

    __slots__ = ("_errors", "_has_fault")

    def __init__(
        self, errors: ErrorLog, server: web.Server, loop: asyncio.AbstractEventLoop, **options: Any
    ) -> None:
        # An application may leave the decoding of bodies to its endpoints.
        options.setdefault("auto_decompress", server._kwargs.get("auto_decompress", True))
        super().__init__(server, loop=loop, access_log=cast(Any, None), **options)
        self._errors = errors
        self._has_fault = False

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception as error:  # asyncio would log it, with its message
            self._errors.write_bug(error, self._peer(), what="reading a request")
            self.force_close()
        if self._messages:
            self._break_off_body()

    def _break_off_body(self) -> None:
        """Fail the reader of a body whose rest is malformed: aiohttp would let it wait."""
        info = self._messages[-1][0]
        if isinstance(info, RawRequestMessage):
            return
        if len(self._messages) > 1:
            body = self._messages[-2][1]
        elif self._current_request is not None:
            body = self._current_request.content
        else:
            return
        if not body.is_eof() and body.exception() is None:
            error = web.RequestPayloadError("the rest of the body is malformed")
            error.__cause__ = info.exc
            body.set_exception(error)

    # aiohttp's hooks for logging and answering errors.

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that is malformed, or whose handler failed."""
        if exc is not None:  # else it timed out
            self._note(exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun, and cannot become another")
        text = None
        if fault := fault_of(exc):
            status, text = HTTPStatus.BAD_REQUEST, f"400 Bad Request: {fault}"
        elif status == HTTPStatus.INTERNAL_SERVER_ERROR:
            text = _FAILED
        response = web.Response(status=status, text=text, content_type="text/plain")
        response.headers[hdrs.SERVER] = "aiosollol"  # else aiohttp's, with versions
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log without the arguments, which may quote a request or an answer."""
        error = kw.get("exc_info")
        if isinstance(error, BaseException):
            self._note(error)
        else:
            self._errors.write(_NO_RESPONSE, self._peer(), level=logging.ERROR)

    def log_debug(self, *args: Any, **kw: Any) -> None:
        """Nothing, for the same reason."""

    def _note(self, error: BaseException) -> None:
        has_fault = bool(fault_of(error))
        if not (has_fault and self._has_fault):  # aiohttp reports some faults twice
            note(self._errors, error, self._peer())
        self._has_fault = self._has_fault or has_fault  # after which the connection ends

    def _peer(self) -> str:
        name = self.peername
        if isinstance(name, tuple):
            return str(name[0])
        return "a Unix socket" if name is not None else "an address that is gone"


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    *,
    name: str,
    grace: float,
    handler_cancellation: bool = False,
) -> AsyncIterator[tuple[str, int]]:
    """Serve `app` while the block runs; gives the address and port it listens on.

    port: 0 picks a free one.
    name: of the server, in the log.
    grace: seconds that requests have to finish.
    handler_cancellation: a client that disconnects cancels its request.

    Raises InvalidInput if it cannot listen.
    """
    errors = ErrorLog(name)
    app.on_response_prepare.append(hide_versions)
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=handler_cancellation, shutdown_timeout=grace
    )
    loop = asyncio.get_running_loop()
    try:
        await runner.setup()
        assert runner.server is not None
        make = partial(HttpConnection, errors, runner.server, loop)
        try:
            listener = await loop.create_server(make, host, port, backlog=_BACKLOG)
        except OSError as error:
            where = f"{without_userinfo(host)} port {port}"
            raise InvalidInput(f"cannot listen on {where}: {error.strerror}") from error
        try:
            bound = listener.sockets[0].getsockname()
            yield bound[0], bound[1]
        finally:
            listener.close()
    finally:
        await runner.cleanup()
        errors.close()
