"""The ways in which a fake node fails: whole answers from a table, and spoiled bodies."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import Literal, NamedTuple

import anyio

from aiosollol.testing.requests import Reply, whole
from aiosollol.wire import compatible_apis
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.server_requests import Refusal

RETRY_AFTER = 1
"""Seconds to wait in the header Retry-After."""

LOST_RUNNER = 'do embedding request: Post "http://127.0.0.1:41237/embedding": EOF'
"""Ollama's message when the process that runs the model crashes during a request."""


class Fault(Enum):
    """How a fake node fails, from the next request on until the fault is cleared.

    Faults apply to requests that compute (embed, chat, generate). ``/api/version``, ``/api/tags``
    and the like go on working, as on a real server whose model has crashed, unless the node was
    created with ``faults_probes=True``. REFUSE applies to all.

    In names, HTML is a web page and TEXT plain text, as reverse proxies send them, and JSON is an
    error in Ollama's form. Number: the status.
    """

    ERROR_500 = "status 500: the process that runs the model is gone"
    ERROR_500_UNKNOWN = "status 500 with a message that is not one of Ollama's"
    ERROR_500_TERMINATED = "status 500: the process that runs the model has terminated"
    ERROR_500_LOADING = "status 500: the model is still loading"
    BUSY_503 = "status 503: the queue is full"
    BUSY_429 = "status 429: too many requests"
    BUSY_429_SECONDS = "status 429, and Retry-After in seconds"
    BUSY_429_DATE = "status 429, and Retry-After as a date"
    BAD_400_RUNNER = "status 400, though it is a dead runner and not a bad request"
    BAD_400_UNKNOWN = "status 400 to everything, with a message that is not one of Ollama's"
    BAD_400_NO_EMBEDDINGS = "status 400 to everything: the model does not support embeddings"
    JSON_401 = "status 401 and an error as JSON, as an API gateway without a key answers"
    JSON_403 = "status 403 and an error as JSON"
    JSON_404 = "status 404 and an error as JSON that is not about a model"
    JSON_405 = "status 405 and an error as JSON"
    HTML_401 = "status 401 and a web page, as a reverse proxy that wants a password answers"
    HTML_403 = "status 403 and a web page"
    HTML_404 = "status 404 and a web page, as another server answers"
    HTML_405 = "status 405 and a web page"
    HTML = "status 200 and a web page, as a captive portal or a wrong port answers"
    HTML_502 = "status 502 and a web page, as a reverse proxy answers for a dead server"
    HTML_503 = "status 503 and a web page"
    HTML_504 = "status 504 and a web page, as a reverse proxy answers for a server that hangs"
    TEXT_408 = "status 408 and plain text, as a proxy answers that has waited for the request"
    TEXT_502 = "status 502 and plain text"
    TEXT_503 = "status 503 and plain text"
    TEXT_504 = "status 504 and plain text"
    REDIRECT = "status 307 to another path of the same server"
    HANG = "accepts the request and never answers"
    STALL = "waits `stall_seconds` before it begins with a request"
    RESET_EARLY = "breaks the connection before the first byte of the answer"
    RESET = "breaks the connection in the middle of the body"
    CUT_JSON = "ends the answer properly, in the middle of its JSON"
    NAN = "computes NaN: an error where the answer is JSON, NaN itself in base64"
    WRONG_DIM = "vectors one number too long"
    TOO_FEW = "one vector too few"
    STREAM_ERROR = "a line with an error in the middle of a stream (embeddings are unharmed)"
    STREAM_CUT = "a stream that ends without its last line (embeddings are unharmed)"
    SLOW_BODY = "the body comes in ten pieces, `seconds_per_piece` apart"
    REFUSE = "refuses connections and breaks those there are, as a dead process does"


class _Canned(NamedTuple):
    """An answer that does not depend on the request.

    message: in the form of the API that is used; by default the name of the status.
    headers: makes those besides the content type. path: of the request.
    """

    status: int
    form: Literal["json", "html", "text"]
    message: str = ""
    headers: Callable[[str], Mapping[str, str]] = lambda path: {}


def _seconds(path: str) -> Mapping[str, str]:
    return {"Retry-After": str(RETRY_AFTER)}


def _date(path: str) -> Mapping[str, str]:
    # A date has whole seconds, so that a client waits up to one more.
    return {"Retry-After": formatdate(math.ceil(time.time()) + RETRY_AFTER, usegmt=True)}


def _location(path: str) -> Mapping[str, str]:
    return {"Location": f"/ollama{path}"}


_CANNED = {
    Fault.ERROR_500: _Canned(500, "json", server_responses.RUNNER_GONE),
    Fault.ERROR_500_UNKNOWN: _Canned(500, "json", "the flux capacitor is not charged"),
    Fault.ERROR_500_TERMINATED: _Canned(
        500, "json", "llama runner process has terminated: exit status 2"
    ),
    Fault.ERROR_500_LOADING: _Canned(500, "json", "llm server loading model"),
    Fault.BUSY_503: _Canned(503, "json", server_responses.BUSY),
    Fault.BUSY_429: _Canned(429, "json", "too many requests"),
    Fault.BUSY_429_SECONDS: _Canned(429, "json", "too many requests", _seconds),
    Fault.BUSY_429_DATE: _Canned(429, "json", "too many requests", _date),
    Fault.BAD_400_RUNNER: _Canned(400, "json", LOST_RUNNER),
    Fault.BAD_400_UNKNOWN: _Canned(400, "json", "the flux capacitor is not charged"),
    Fault.BAD_400_NO_EMBEDDINGS: _Canned(400, "json", "this model does not support embeddings"),
    Fault.JSON_401: _Canned(401, "json", "unauthorized"),
    Fault.JSON_403: _Canned(403, "json", "forbidden"),
    Fault.JSON_404: _Canned(404, "json", "not found"),
    Fault.JSON_405: _Canned(405, "json", "method not allowed"),
    Fault.HTML_401: _Canned(401, "html"),
    Fault.HTML_403: _Canned(403, "html"),
    Fault.HTML_404: _Canned(404, "html"),
    Fault.HTML_405: _Canned(405, "html"),
    Fault.HTML: _Canned(200, "html", "Welcome"),
    Fault.HTML_502: _Canned(502, "html"),
    Fault.HTML_503: _Canned(503, "html"),
    Fault.HTML_504: _Canned(504, "html"),
    Fault.TEXT_408: _Canned(408, "text"),
    Fault.TEXT_502: _Canned(502, "text"),
    Fault.TEXT_503: _Canned(503, "text"),
    Fault.TEXT_504: _Canned(504, "text"),
    Fault.REDIRECT: _Canned(307, "html", headers=_location),
}
_PAGE = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n"
    "<center><h1>{0}</h1></center>\r\n</body>\r\n</html>\r\n"
)
_PIECES = 10


def answer_instead(fault: Fault | None, path: str, unique: str) -> Reply | None:
    """The answer of a node that fails before reading the request. unique: the request's id."""
    if fault is Fault.RESET_EARLY:
        return Reply(0, "")
    if fault not in _CANNED:
        return None
    status, form, message, headers = _CANNED[fault]
    phrase = HTTPStatus(status).phrase
    if form == "json":
        reply = whole(compatible_apis.refuse(path, Refusal(status, message or phrase), unique))
    elif form == "html":
        reply = Reply(status, "text/html", _PAGE.format(message or f"{status} {phrase}").encode())
    else:
        reply = Reply(status, server_responses.PLAIN, (message or phrase).encode())
    reply.headers = headers(path)
    return reply


def spoil(reply: Reply, fault: Fault | None, seconds_per_piece: float) -> None:
    """Apply a fault to a reply's body. Streams do that themselves, line by line."""
    body = reply.body
    if fault is Fault.RESET:
        reply.breaks = True
    if reply.parts is not None:
        return
    if fault is Fault.CUT_JSON:
        reply.body = body[: len(body) // 2]
    elif fault is Fault.RESET:
        reply.length = len(body)
        reply.parts = _pieces(reply, [body[: len(body) // 2]], 0.0)
    elif fault is Fault.SLOW_BODY:
        reply.length = len(body)
        step = -(-len(body) // _PIECES) or 1
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        reply.parts = _pieces(reply, pieces, seconds_per_piece)


async def _pieces(
    reply: Reply, pieces: Sequence[bytes], seconds: float
) -> AsyncGenerator[bytes, None]:
    last = len(pieces) - 1
    for number, piece in enumerate(pieces):
        await anyio.sleep(seconds)
        reply.is_finished = number == last  # before the yield: the client may leave right after
        yield piece
    reply.is_finished = True
