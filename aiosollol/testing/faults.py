"""`Fault`: the ways in which a fake node can fail, and the effect of each on a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from enum import Enum

import anyio

from aiosollol.testing.requests import Reply
from aiosollol.wire import compatible_apis
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse

_PAGE = (
    b"<html>\r\n<head><title>%b</title></head>\r\n<body>\r\n"
    b"<center><h1>%b</h1></center>\r\n</body>\r\n</html>\r\n"
)
_LOST_RUNNER = 'do embedding request: Post "http://127.0.0.1:41237/embedding": EOF'
_PIECES = 10


class Fault(Enum):
    """How a fake node fails, from the next request on until the fault is cleared.

    Faults apply to requests that compute (embed, chat, generate). ``/api/version``, ``/api/tags``
    and the like go on working, as on a real server whose model has crashed, unless the node was
    created with ``faults_probes=True``. REFUSE applies to all.
    """

    ERROR_500 = "status 500: the process that runs the model is gone"
    BUSY_503 = "status 503: the queue is full"
    BAD_400_RUNNER = "status 400, though it is a dead runner and not a bad request"
    HANG = "accepts the request and never answers"
    RESET = "breaks the connection in the middle of the body"
    CUT_JSON = "ends the answer properly, in the middle of its JSON"
    HTML = "status 200 and a web page, as a captive portal or a wrong port answers"
    HTML_502 = "status 502 and a web page, as a reverse proxy answers for a dead server"
    NAN = "computes NaN: an error where the answer is JSON, NaN itself in base64"
    WRONG_DIM = "vectors one number too long"
    TOO_FEW = "one vector too few"
    STREAM_ERROR = "a line with an error in the middle of a stream (embeddings are unharmed)"
    STREAM_CUT = "a stream that ends without its last line (embeddings are unharmed)"
    SLOW_BODY = "the body comes in ten pieces, `seconds_per_piece` apart"
    REFUSE = "refuses connections and breaks those there are, as a dead process does"


def answer_instead(fault: Fault | None, path: str, unique: str) -> HttpResponse | None:
    """The answer of a node that fails before reading the request. unique: the request's id."""
    match fault:
        case Fault.ERROR_500:
            refusal = Refusal(500, server_responses.RUNNER_GONE)
        case Fault.BUSY_503:
            refusal = Refusal(503, server_responses.BUSY)
        case Fault.BAD_400_RUNNER:
            refusal = Refusal(400, _LOST_RUNNER)
        case Fault.HTML:
            return HttpResponse(200, "text/html", _PAGE % (b"Welcome", b"Welcome"))
        case Fault.HTML_502:
            return HttpResponse(502, "text/html", _PAGE % (b"502 Bad Gateway", b"502 Bad Gateway"))
        case _:
            return None
    return compatible_apis.refuse(path, refusal, unique)


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
