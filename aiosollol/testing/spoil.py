"""What a fault makes of a request: an answer instead of the right one, or a spoiled body."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import anyio

from aiosollol.testing.fault import Fault
from aiosollol.testing.reply import Reply
from aiosollol.wire import answers, dialects
from aiosollol.wire.answers import Answer
from aiosollol.wire.asked import Refusal

_PAGE = (
    b"<html>\r\n<head><title>%b</title></head>\r\n<body>\r\n"
    b"<center><h1>%b</h1></center>\r\n</body>\r\n</html>\r\n"
)
_LOST_RUNNER = 'do embedding request: Post "http://127.0.0.1:41237/embedding": EOF'
_PIECES = 10


def answer_instead(fault: Fault | None, path: str, unique: str) -> Answer | None:
    """The answer of a node that does not come to read the request, which is known as `unique`."""
    match fault:
        case Fault.ERROR_500:
            refusal = Refusal(500, answers.RUNNER_GONE)
        case Fault.BUSY_503:
            refusal = Refusal(503, answers.BUSY)
        case Fault.BAD_400_RUNNER:
            refusal = Refusal(400, _LOST_RUNNER)
        case Fault.HTML:
            return Answer(200, "text/html", _PAGE % (b"Welcome", b"Welcome"))
        case Fault.HTML_502:
            return Answer(502, "text/html", _PAGE % (b"502 Bad Gateway", b"502 Bad Gateway"))
        case _:
            return None
    return dialects.refuse(path, refusal, unique)


def spoil(reply: Reply, fault: Fault | None, seconds_per_piece: float) -> None:
    """Change a reply whose body a fault spoils. Streams spoil themselves, line by line."""
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
        reply.is_finished = number == last  # before it is handed over: who has it may leave
        yield piece
    reply.is_finished = True
