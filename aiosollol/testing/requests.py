"""One request at a fake node: its record, its reply, its slot, and the faults that spoil it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import anyio

from aiosollol.wire import compatible_apis
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse


@dataclass(slots=True)
class RecordedRequest:
    """One request in a fake node's `log`.

    at: time of arrival, on the event loop's clock. seconds: its duration.
    items: number of texts. status: the HTTP status, 0 if the client left before there was one.
    headers: as received; without sockets, only those specific to the request.
    """

    at: float
    method: str
    path: str
    model: str = ""
    items: int = 0
    status: int = 0
    seconds: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class Reply:
    """The response: `body`, or `parts` if it is streamed.

    length: of the whole body, if it is announced. breaks: whether the connection breaks after
    `parts`.
    """

    status: int
    content_type: str
    body: bytes = b""
    parts: AsyncGenerator[bytes, None] | None = None
    length: int | None = None
    breaks: bool = False
    is_finished: bool = False


class SimulatedRequest:
    """A request being answered, and whether it has a slot."""

    def __init__(self, record: RecordedRequest, slots: Slots) -> None:
        self.record = record
        self._slots = slots
        self._has_slot = False

    async def acquire(self) -> None:
        await self._slots.acquire()
        self._has_slot = True

    def release(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._slots.release()


def whole(answer: HttpResponse) -> Reply:
    """A reply that is not streamed."""
    return Reply(answer.status, answer.content_type, answer.body)


class Slots:
    """A semaphore that is strictly first in, first out, and whose size may change while in use."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._waiting: deque[anyio.Event] = deque()

    @property
    def size(self) -> int:
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size
        self._wake()

    @property
    def waiting(self) -> int:
        """The number of tasks that wait for a slot."""
        return len(self._waiting)

    async def acquire(self) -> None:
        """Wait for a slot and take it."""
        if self._taken < self._size and not self._waiting:
            self._taken += 1
            return
        turn = anyio.Event()
        self._waiting.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # cancelled just after getting the slot: pass it on
                self.release()
            else:
                self._waiting.remove(turn)
            raise

    def release(self) -> None:
        """Give a slot back; the task that has waited longest gets it at once."""
        self._taken -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._taken < self._size:
            self._taken += 1
            self._waiting.popleft().set()


class Pace:
    """Sleeps for costs against the clock: a sleep that overruns shortens the next.

    A thousand items of 1 ms take a second even if a sleep of 1 ms takes 2.
    """

    def __init__(self) -> None:
        self._due = anyio.current_time()

    async def pay(self, seconds: float) -> None:
        self._due += seconds
        if seconds and anyio.current_time() < self._due:
            await anyio.sleep_until(self._due)


def nanoseconds(seconds: float) -> int:
    """`seconds` in nanoseconds, as Ollama reports them; at least 1, as it leaves out zeros."""
    return max(1, round(seconds * 1e9))


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
