"""`FakeNode`: a fake node without transport: costs, queue, models, faults, counters."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TypedDict

import anyio
from anyio.lowlevel import checkpoint

from aiosollol.core.model_names import full_name
from aiosollol.errors import InvalidInput
from aiosollol.testing import chat, endpoints
from aiosollol.testing.endpoints import probe
from aiosollol.testing.faults import Fault, answer_instead, spoil
from aiosollol.testing.models import FakeModel, Memory, fake_vector
from aiosollol.testing.requests import (
    RecordedRequest,
    Reply,
    SimulatedRequest,
    Slots,
    whole,
)
from aiosollol.wire import compatible_apis
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.server_requests import (
    ChatAsked,
    EmbedAsked,
    GenerateAsked,
    Refusal,
)

DEFAULT_MODELS = (FakeModel("nomic-embed-text"), FakeModel("llama3.2", kind="chat"))
SECONDS = (
    "overhead",
    "seconds_per_item",
    "seconds_per_token",
    "seconds_per_chat_token",
    "load_seconds",
)


class ProcessOptions(TypedDict, total=False):
    """The options of a fake node that its command line has too: see `FakeNode`."""

    models: Iterable[str | FakeModel]
    overhead: float
    seconds_per_item: float
    seconds_per_token: float
    seconds_per_chat_token: float
    slots: int
    load_seconds: float
    version: str


class FakeOptions(ProcessOptions, total=False):
    """The options of every fake node: see `FakeNode`."""

    max_queue: int
    max_loaded: int | None
    poison: Iterable[str]
    crash_on: Iterable[str]
    count_texts: bool
    faults_probes: bool


class FakeNode:
    """The behaviour of an Ollama server: `exchange` takes a request and gives a `Reply`.

    Use the subclasses `FakeOllama` (with sockets) and `FakeTransport` (without). Options:

    models: names, or `FakeModel`; by default "nomic-embed-text" and, for chat, "llama3.2".
    overhead: seconds per request.
    seconds_per_item, seconds_per_token: for each text to embed, and each prompt token.
    seconds_per_chat_token: for each token of an answer.
    slots: requests computed at once; the others wait, first in, first out.
    load_seconds: added to the first request to a model; lost if that request is cancelled.
    version: from 0.12.7 on ``encoding_format`` is supported.
    max_queue: requests that may wait for a model load before others are answered 503.
    max_loaded: models in memory at once; the least recently used is evicted for another.
    poison: a request with a text that contains one of these is answered 400 as a whole.
    crash_on: a request with a text that contains one of these kills the process that runs the
    model: status 500, and the model must be loaded again.
    count_texts: count each computed text in `embedded`.
    faults_probes: see `Fault`.

    Costs, `slots`, `poison`, `crash_on`, `fault` and the models may be changed while it runs; a
    cost applies from the next item on. `seconds_per_piece` is the pace of Fault.SLOW_BODY,
    `stall_seconds` the wait of Fault.STALL.

    Counters, exact: `requests` (embed, chat, generate), `probes` (all others), `items` (texts
    computed), `in_flight`, `max_in_flight`, `cancelled` (requests whose client left). `log` holds
    the last 1,000 requests.

    Raises InvalidInput for an invalid option.
    """

    def __init__(
        self,
        *,
        models: Iterable[str | FakeModel] = DEFAULT_MODELS,
        overhead: float = 0.0,
        seconds_per_item: float = 0.0,
        seconds_per_token: float = 0.0,
        seconds_per_chat_token: float = 0.0,
        slots: int = 1,
        load_seconds: float = 0.0,
        version: str = "0.33.0",
        max_queue: int = 512,
        max_loaded: int | None = None,
        poison: Iterable[str] = (),
        crash_on: Iterable[str] = (),
        count_texts: bool = False,
        faults_probes: bool = False,
    ) -> None:
        self.overhead = overhead
        self.seconds_per_item = seconds_per_item
        self.seconds_per_token = seconds_per_token
        self.seconds_per_chat_token = seconds_per_chat_token
        self.seconds_per_piece = 0.1
        self.stall_seconds = 1.0
        self.load_seconds = load_seconds
        self.version = version
        self.max_queue = max_queue
        self.poison = {poison} if isinstance(poison, str) else set(poison)
        self.crash_on = {crash_on} if isinstance(crash_on, str) else set(crash_on)
        self.count_texts = count_texts
        self.faults_probes = faults_probes
        for name in SECONDS:
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidInput(f"{name} must be a number of seconds, not {getattr(self, name)}")
        self._slots = Slots(_checked_slots(slots))
        self.memory = Memory(max_loaded)
        self.models: dict[str, FakeModel] = {}
        for model in [models] if isinstance(models, str) else models:
            self.add_model(model)

        self.requests = 0
        self.probes = 0
        self.items = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.cancelled = 0
        self.log: deque[RecordedRequest] = deque(maxlen=1000)
        self.embedded: Counter[str] = Counter()

        self._fault: Fault | None = None
        self._next_faults: deque[Fault] = deque()

    def __repr__(self) -> str:
        fault = f", {self._fault.name}" if self._fault else ""
        counts = f"{self.requests} requests, {self.in_flight} in flight"
        return f"<{type(self).__name__} {counts}{fault}>"

    # ---- controls for tests

    @property
    def slots(self) -> int:
        """The number of requests computed at once."""
        return self._slots.size

    @slots.setter
    def slots(self, slots: int) -> None:
        self._slots.size = _checked_slots(slots)

    @property
    def fault(self) -> Fault | None:
        """The current fault; None clears it."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._fault = fault
        self._fault_changed()

    def fail_next(self, fault: Fault, times: int = 1) -> None:
        """Make the next `times` requests that compute fail with `fault`."""
        self._next_faults.extend([fault] * times)

    def _fault_changed(self) -> None:
        """A hook for subclasses that have connections to break."""

    # ---- its models

    def add_model(self, model: str | FakeModel) -> None:
        """Add a model, as ``ollama pull`` would."""
        made = FakeModel(model) if isinstance(model, str) else model
        self.models[full_name(made.name)] = made

    def remove_model(self, name: str) -> None:
        """Remove a model, as ``ollama rm`` would. Raises KeyError if there is none."""
        model = self.models.pop(full_name(name))
        self.memory.unload(model.name)

    def find_model(self, name: str) -> FakeModel:
        """The model `name`. Raises Refusal, the server's 404."""
        model = self.models.get(full_name(name))
        if model is None:
            raise server_responses.unknown_model(name)
        return model

    def vector(self, model: str, text: str, dimensions: int = 0) -> bytes:
        """The vector of `text` from this node: float32 in this machine's byte order.

        Raises KeyError if the node does not have the model.
        """
        made = self.models[full_name(model)]
        return fake_vector(made.weights, text, made.cut(dimensions))

    # ---- one request

    @asynccontextmanager
    async def exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Reply]:
        """Handle a request; gives the reply when its status line would be sent.

        Leaving the context before the reply is finished counts as a disconnect. REFUSE is left to
        subclasses, which have connections.
        """
        is_work = path in _WORK and method == "POST"
        record = RecordedRequest(anyio.current_time(), method, path)
        if headers:
            record.headers = headers
        work = SimulatedRequest(record, self._slots)
        self._begin(is_work)
        reply = None
        try:
            fault = self._take_fault(is_work)
            if fault is Fault.HANG:
                await anyio.sleep_forever()
            if fault is Fault.STALL:
                await anyio.sleep(self.stall_seconds)
            await checkpoint()  # let others run even without costs, as a socket would
            reply = await self._reply(work, method, path, body, fault)
            spoil(reply, fault, self.seconds_per_piece)
            work.record.status = reply.status
            yield reply
            if reply.parts is None:
                reply.is_finished = True
        finally:
            work.release()
            if reply is not None and reply.parts is not None:
                await reply.parts.aclose()
            self._end(work.record, is_work, reply is not None and reply.is_finished)

    def _begin(self, is_work: bool) -> None:
        if not self.in_flight:
            self.memory.expire()
        if is_work:
            self.requests += 1
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        else:
            self.probes += 1

    def _end(self, record: RecordedRequest, is_work: bool, is_finished: bool) -> None:
        record.seconds = anyio.current_time() - record.at
        self.log.append(record)
        if is_work:
            self.in_flight -= 1
            self.cancelled += not is_finished

    def _take_fault(self, is_work: bool) -> Fault | None:
        if is_work and self._next_faults:
            return self._next_faults.popleft()
        return self._fault if is_work or self.faults_probes else None

    async def _reply(
        self, work: SimulatedRequest, method: str, path: str, body: bytes, fault: Fault | None
    ) -> Reply:
        unique = str(self.requests)
        instead = answer_instead(fault, path, unique)
        if instead is not None:
            return instead
        try:
            if path not in _WORK:
                return whole(probe(self, method, path, body))
            if method != "POST":
                return whole(server_responses.method_not_allowed())
            return await _WORK[path](self, work, body, fault)
        except Refusal as refusal:
            return whole(compatible_apis.refuse(path, refusal, unique))

    async def load(self, model: FakeModel, request: Asked) -> float:
        """Load `model` for a request unless it is loaded; returns the seconds taken.

        Raises Refusal.
        """
        return await self.memory.load(
            model.name,
            request.options,
            seconds=self.load_seconds,
            keep_alive=request.keep_alive,
            max_queue=self.max_queue,
        )

    def after(self, model: FakeModel, request: Asked) -> None:
        """Keep the model after a request for its `keep_alive`, or unload it if that is 0."""
        if request.keep_alive == 0:
            self.memory.unload(model.name)
        else:
            self.memory.keep(model.name, request.keep_alive)


Asked = EmbedAsked | ChatAsked | GenerateAsked
_WORK = {
    "/api/embed": endpoints.api_embed,
    "/api/embeddings": endpoints.api_embeddings,
    "/v1/embeddings": endpoints.openai_embeddings,
    "/api/chat": chat.api_chat,
    "/api/generate": chat.api_generate,
    **chat.FOREIGN_HANDLERS,
}


def _checked_slots(slots: int) -> int:
    if slots < 1:
        raise InvalidInput(f"slots must be at least 1, not {slots}")
    return slots
