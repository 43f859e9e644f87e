"""How a fake node behaves, whatever it is reached by: costs, queue, models, faults, counters."""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from aiosollol.core.node import full_name
from aiosollol.errors import InvalidInput
from aiosollol.testing.fault import Fault
from aiosollol.testing.model import FakeModel, fake_tokens, fake_vector
from aiosollol.testing.slots import Slots
from aiosollol.wire import answers, asked
from aiosollol.wire.answers import Answer
from aiosollol.wire.asked import Refusal

DEFAULT_MODELS = (FakeModel("nomic-embed-text"), FakeModel("llama3.2", kind="chat"))
_COSTS = ("overhead", "seconds_per_item", "seconds_per_token", "seconds_per_chat_token")
# Options whose change makes Ollama load a model again.
_LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
_PAGE = (
    b"<html>\r\n<head><title>%b</title></head>\r\n<body>\r\n"
    b"<center><h1>%b</h1></center>\r\n</body>\r\n</html>\r\n"
)
_LOST_RUNNER = 'do embedding request: Post "http://127.0.0.1:41237/embedding": EOF'


@dataclass(slots=True)
class Record:
    """One request in a fake node's `log`.

    at: when it came, on the event loop's clock. seconds: how long it took.
    items: texts in it. status: the HTTP status, 0 if the client left before there was one.
    """

    at: float
    method: str
    path: str
    model: str = ""
    items: int = 0
    status: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Reply:
    """What goes back over the wire: `body`, or `parts` where it comes bit by bit.

    length: of the whole body, where it is announced. breaks: the connection breaks at the end of
    `parts`.
    """

    status: int
    content_type: str
    body: bytes = b""
    parts: AsyncGenerator[bytes, None] | None = None
    length: int | None = None
    breaks: bool = False
    is_finished: bool = False


class FakeNode:
    """An Ollama server's behaviour without a server: `exchange` takes a request, gives a `Reply`.

    Use `FakeOllama` (sockets) or `FakeTransport` (none), which are fake nodes. Options:

    models: names, or `FakeModel`.
    overhead: seconds per request. seconds_per_item, seconds_per_token: for each text to embed and
        each prompt token. seconds_per_chat_token: for each token of an answer.
    slots: how many requests are computed at once; the others wait, first in, first out.
    load_seconds: what the first request to a model pays, and throws away if it leaves meanwhile.
    version: from 0.12.7 on ``encoding_format`` is honoured.
    max_queue: how many requests may wait for a model to load before others are answered 503.
    poison: a request with a text that contains one of these is answered 400, all of it.
    count_texts: count each text computed in `embedded`. faults_probes: see `Fault`.

    Costs, `slots`, `poison` and `fault` may be changed while it runs; a cost applies from the next
    item on. Counters, exact: `requests` (embed, chat, generate), `probes` (all others), `items`
    (texts computed), `in_flight`, `max_in_flight`, `cancelled` (requests whose client left).
    `log` holds the last 1,000 requests.

    Raises InvalidInput for an option that cannot be.
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
        poison: Iterable[str] = (),
        count_texts: bool = False,
        faults_probes: bool = False,
    ) -> None:
        self.models: dict[str, FakeModel] = {}
        self.overhead = overhead
        self.seconds_per_item = seconds_per_item
        self.seconds_per_token = seconds_per_token
        self.seconds_per_chat_token = seconds_per_chat_token
        self.seconds_per_piece = 0.1
        self.load_seconds = load_seconds
        self.version = version
        self.max_queue = max_queue
        self.poison = {poison} if isinstance(poison, str) else set(poison)
        self.count_texts = count_texts
        self.faults_probes = faults_probes
        for name in (*_COSTS, "load_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidInput(f"{name} must be a number of seconds, not {getattr(self, name)}")
        if slots < 1:
            raise InvalidInput(f"slots must be at least 1, not {slots}")
        for model in [models] if isinstance(models, str) else models:
            self.add_model(model)

        self.requests = 0
        self.probes = 0
        self.items = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.cancelled = 0
        self.log: deque[Record] = deque(maxlen=1000)
        self.embedded: Counter[str] = Counter()

        self._slots = Slots(slots)
        self._loading = Slots(1)  # one cold load at a time, whatever the model
        self._loaded: dict[str, _Loaded] = {}
        self._fault: Fault | None = None
        self._next_faults: deque[Fault] = deque()

    def __repr__(self) -> str:
        fault = f", {self._fault.name}" if self._fault else ""
        return (
            f"<{type(self).__name__} {self.requests} requests, {self.in_flight} in flight{fault}>"
        )

    # ---- what a test changes

    @property
    def slots(self) -> int:
        """How many requests are computed at once."""
        return self._slots.size

    @slots.setter
    def slots(self, slots: int) -> None:
        self._slots.size = slots

    @property
    def fault(self) -> Fault | None:
        """What is wrong with the node; None heals it."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._fault = fault
        self._fault_changed()

    def fail_next(self, fault: Fault, times: int = 1) -> None:
        """Let the next `times` requests that compute fail with `fault`, and then no more."""
        self._next_faults.extend([fault] * times)

    def _fault_changed(self) -> None:
        """For what has connections to break."""

    def add_model(self, model: str | FakeModel) -> None:
        """Give the node a model, as ``ollama pull`` would."""
        made = FakeModel(model) if isinstance(model, str) else model
        self.models[made.name] = made

    def remove_model(self, name: str) -> None:
        """Take a model away, as ``ollama rm`` would."""
        del self.models[full_name(name)]
        self._loaded.pop(full_name(name), None)

    def vector(self, model: str, text: str, dimensions: int = 0) -> bytes:
        """The float32 bytes of the vector that this node gives for `text`."""
        made = self.models[full_name(model)]
        return fake_vector(made.digest, text, _dim(made, dimensions))

    # ---- one request

    @asynccontextmanager
    async def exchange(self, method: str, path: str, body: bytes) -> AsyncIterator[Reply]:
        """Receive a request; the reply is there when the status line would be.

        Leaving the context before the reply is finished is the client's disconnect. REFUSE is
        not handled here: it is a matter of connections.
        """
        is_work = path in _WORK and method == "POST"
        work = _Work(Record(anyio.current_time(), method, path), self._slots)
        self._begin(is_work)
        reply = None
        try:
            fault = self._take_fault(is_work)
            if fault is Fault.HANG:
                await anyio.sleep_forever()
            reply = await self._reply(work, method, path, body, fault)
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
        if is_work:
            self.requests += 1
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        else:
            self.probes += 1

    def _end(self, record: Record, is_work: bool, is_finished: bool) -> None:
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
        self, work: _Work, method: str, path: str, body: bytes, fault: Fault | None
    ) -> Reply:
        is_openai = path.startswith("/v1/")
        try:
            broken = _broken(fault, path)
            if broken is not None:
                reply = Reply(broken.status, broken.content_type, broken.body)
            elif path in _WORK and method == "POST":
                reply = await _WORK[path](self, work, body, fault)
            else:
                answer = self._probe(method, path, body)
                reply = Reply(answer.status, answer.content_type, answer.body)
        except Refusal as refusal:
            answer = answers.refuse(refusal, openai=is_openai)
            reply = Reply(answer.status, answer.content_type, answer.body)
        return self._mangle(reply, fault)

    def _mangle(self, reply: Reply, fault: Fault | None) -> Reply:
        """Break the body of a reply where the fault is one of the body."""
        body = reply.body
        if fault is Fault.CUT_JSON and reply.parts is None:
            reply.body = body[: len(body) // 2]
        elif fault is Fault.RESET:
            reply.breaks = True
            if reply.parts is None:
                reply.length = len(body)
                reply.parts = self._pieces(reply, [body[: len(body) // 2]], 0.0)
        elif fault is Fault.SLOW_BODY and reply.parts is None:
            reply.length = len(body)
            step = -(-len(body) // 10) or 1
            pieces = [body[at : at + step] for at in range(0, len(body), step)]
            reply.parts = self._pieces(reply, pieces, self.seconds_per_piece)
        return reply

    async def _pieces(
        self, reply: Reply, pieces: Sequence[bytes], seconds: float
    ) -> AsyncGenerator[bytes, None]:
        last = len(pieces) - 1
        for number, piece in enumerate(pieces):
            await anyio.sleep(seconds)
            reply.is_finished = number == last  # before it is handed over: who has it may leave
            yield piece
        reply.is_finished = True

    # ---- what does not compute

    def _probe(self, method: str, path: str, body: bytes) -> Answer:
        if path in _WORK:
            return answers.method_not_allowed()
        if path.startswith("/v1/models/") and method == "GET":
            name = path.removeprefix("/v1/models/")
            if full_name(name) not in self.models:
                raise answers.unknown_model(full_name(name))
            return answers.openai_model(name, _CREATED)
        if path not in _PROBES:
            return answers.not_found()
        probe = _PROBES[path].get(method)
        return probe(self, body) if probe else answers.method_not_allowed()

    def _root(self, body: bytes) -> Answer:
        return answers.root()

    def _version(self, body: bytes) -> Answer:
        return answers.version(self.version)

    def _tags(self, body: bytes) -> Answer:
        return answers.tags(model.card() for model in self.models.values())

    def _ps(self, body: bytes) -> Answer:
        return answers.ps(
            (model.card(), model.size if model.gpu else 0, answers.timestamp(loaded.until))
            for name, loaded in self._loaded.items()
            if (model := self.models.get(name))
        )

    def _show(self, body: bytes) -> Answer:
        name = full_name(asked.read_show(body))
        if name not in self.models:
            raise answers.unknown_model(name)
        return answers.show(self.models[name].card())

    def _copy(self, body: bytes) -> Answer:
        source, destination = asked.read_copy(body)
        model = self._find(source)
        self.add_model(
            FakeModel(destination, model.dim, model.digest, model.kind, model.context_length)
        )
        return Answer(200, "", b"")

    def _delete(self, body: bytes) -> Answer:
        name = asked.read_delete(body)
        self._find(name)
        self.remove_model(name)
        return Answer(200, "", b"")

    def _openai_models(self, body: bytes) -> Answer:
        return answers.openai_models((name, _CREATED) for name in self.models)

    # ---- embedding

    async def _api_embed(self, work: _Work, body: bytes, fault: Fault | None) -> Reply:
        request = asked.read_embed(body)
        done = await self._embed(work, request, fault)
        vectors = answers.json_vectors(done.floats, done.dim)
        return _whole(
            answers.embed(
                request.model,
                vectors,
                total_duration=_ns(done.seconds) if request.texts else 0,
                load_duration=_ns(done.load_seconds) if request.texts else 0,
                tokens=done.tokens,
            )
        )

    async def _api_embeddings(self, work: _Work, body: bytes, fault: Fault | None) -> Reply:
        done = await self._embed(work, asked.read_embeddings(body), fault)
        vectors = answers.json_vectors(done.floats, done.dim)
        return _whole(answers.embeddings(vectors[0] if vectors else None))

    async def _v1_embeddings(self, work: _Work, body: bytes, fault: Fault | None) -> Reply:
        request = asked.read_openai_embeddings(body, knows_base64=_knows_base64(self.version))
        done = await self._embed(work, request, fault)
        is_base64 = request.encoding == "base64"
        write = answers.base64_vectors if is_base64 else answers.json_vectors
        return _whole(
            answers.openai_embeddings(
                request.model, write(done.floats, done.dim), tokens=done.tokens
            )
        )

    async def _embed(
        self, work: _Work, request: asked.EmbedAsked, fault: Fault | None
    ) -> _Embedded:
        model = self.models.get(full_name(request.model))
        if model is None:
            raise answers.unknown_model_try_pulling(request.model)
        if model.kind != "embedding":
            raise Refusal(501, answers.NO_EMBEDDINGS)
        work.record.model = model.name
        work.record.items = len(request.texts)
        done = _Embedded(bytearray(), _dim(model, request.dimensions))
        done.load_seconds = await self._load(model, request.keep_alive, request.options)
        if not request.texts:
            self._after(model, request.keep_alive)
            return done
        if fault is Fault.WRONG_DIM:
            done.dim += 1
        await work.acquire()
        pace = _Pace()
        await pace.pay(self.overhead)
        for number, text in enumerate(request.texts):
            tokens = min(fake_tokens(text), model.context_length)
            await pace.pay(self.seconds_per_item + self.seconds_per_token * tokens)
            if number % 64 == 63:
                await checkpoint()  # a long list without a cost still lets others run
            done.floats += fake_vector(model.digest, text, done.dim)
            done.tokens += tokens
            self.items += 1
            if self.count_texts:
                self.embedded[text] += 1
        work.release()
        self._after(model, request.keep_alive)
        # Like Ollama, only now: one bad text fails the list, and the others were computed for it.
        self._refuse_bad(model, request)
        if fault is Fault.NAN:
            if request.encoding != "base64":
                raise Refusal(500, answers.NAN)
            done.floats[:4] = _NAN
        if fault is Fault.TOO_FEW:
            del done.floats[-4 * done.dim :]
        done.seconds = anyio.current_time() - work.record.at
        return done

    def _refuse_bad(self, model: FakeModel, request: asked.EmbedAsked) -> None:
        for text in request.texts:
            is_long = not request.truncate and fake_tokens(text) > model.context_length
            if is_long or any(poison in text for poison in self.poison):
                raise Refusal(400, answers.TOO_LONG)

    # ---- chat and generate

    async def _api_chat(self, work: _Work, body: bytes, fault: Fault | None) -> Reply:
        request = asked.read_chat(body)
        model = self._speaker(work, request.model, "chat")
        if request.tools and not model.tools:
            raise answers.cannot_use_tools(request.model)
        prompt = [str(message.get("content") or "") for message in request.messages]
        voice = _Voice(request.model, answers.chat_part, answers.chat_final)
        return await self._speak(work, model, request, prompt, voice, fault)

    async def _api_generate(self, work: _Work, body: bytes, fault: Fault | None) -> Reply:
        request = asked.read_generate(body)
        model = self._speaker(work, request.model, "generate")
        prompt = [request.prompt] if request.prompt else []
        voice = _Voice(request.model, answers.generate_part, _generate_final)
        return await self._speak(work, model, request, prompt, voice, fault)

    def _find(self, name: str) -> FakeModel:
        model = self.models.get(full_name(name))
        if model is None:
            raise answers.unknown_model(name)
        return model

    def _speaker(self, work: _Work, name: str, what: str) -> FakeModel:
        if not name:
            raise Refusal(400, "model is required")
        model = self._find(name)
        if model.kind != "chat":
            raise answers.cannot(name, what)
        work.record.model = model.name
        return model

    async def _speak(
        self,
        work: _Work,
        model: FakeModel,
        request: asked.ChatAsked | asked.GenerateAsked,
        prompt: list[str],
        voice: _Voice,
        fault: Fault | None,
    ) -> Reply:
        if not prompt and request.keep_alive == 0:
            self._loaded.pop(model.name, None)
            return _whole(answers.json_answer(voice.final(_now(), "unload")))
        load_seconds = await self._load(model, request.keep_alive, request.options)
        if not prompt:
            return _whole(answers.json_answer(voice.final(_now(), "load")))
        await work.acquire()
        said = _echo(prompt[-1], request.options)
        prompt_tokens = sum(map(fake_tokens, prompt))
        began = anyio.current_time()
        pace = _Pace()
        await pace.pay(self.overhead + self.seconds_per_token * prompt_tokens)
        spoken = anyio.current_time()

        def final(content: str) -> dict[str, Any]:
            now = anyio.current_time()
            self._after(model, request.keep_alive)
            work.release()
            metrics = answers.Metrics(
                total_duration=_ns(now - work.record.at),
                load_duration=_ns(load_seconds),
                prompt_eval_count=prompt_tokens,
                prompt_eval_duration=_ns(spoken - began),
                eval_count=len(said.tokens),
                eval_duration=_ns(now - spoken),
            )
            return voice.final(_now(), said.reason, metrics, content)

        if not request.stream:
            for _ in said.tokens:
                await pace.pay(self.seconds_per_chat_token)
            if fault is Fault.STREAM_ERROR:
                raise Refusal(500, answers.RUNNER_GONE)
            return _whole(answers.json_answer(final("".join(said.tokens))))
        reply = Reply(200, answers.NDJSON)
        reply.parts = self._lines(reply, said.tokens, pace, voice, final, fault)
        return reply

    async def _lines(
        self,
        reply: Reply,
        tokens: list[str],
        pace: _Pace,
        voice: _Voice,
        final: Callable[[str], dict[str, Any]],
        fault: Fault | None,
    ) -> AsyncGenerator[bytes, None]:
        """A stream, and how each fault spoils it half-way or at its end."""
        middle = len(tokens) // 2
        spoils = fault in (Fault.STREAM_ERROR, Fault.STREAM_CUT, Fault.RESET)
        for number, token in enumerate(tokens):
            if spoils and number == middle:
                break
            await pace.pay(self.seconds_per_chat_token)
            if fault is Fault.SLOW_BODY:
                await anyio.sleep(self.seconds_per_piece)
            yield answers.line(voice.part(_now(), token))
        if fault is Fault.STREAM_ERROR:
            yield answers.line({"error": answers.RUNNER_GONE})
        elif not spoils:
            last = answers.line(final(""))
            reply.is_finished = True
            yield last[: len(last) // 2] if fault is Fault.CUT_JSON else last
        reply.is_finished = True

    # ---- models in memory

    async def _load(
        self, model: FakeModel, keep_alive: float | None, options: Mapping[str, Any]
    ) -> float:
        """Bring a model into memory; the seconds that it took. A disconnect throws it away."""
        began = anyio.current_time()
        key = tuple(options.get(name) for name in _LOAD_OPTIONS)
        if self._is_cold(model, key):
            if self._loading.waiting >= self.max_queue:
                raise Refusal(503, answers.BUSY)
            await self._loading.acquire()
            try:
                if self._is_cold(model, key):  # whoever came before may have loaded it
                    self._loaded.pop(model.name, None)
                    await anyio.sleep(self.load_seconds)
            finally:
                self._loading.release()
        seconds = 300.0 if keep_alive is None else keep_alive
        until = time.time_ns() + int(min(seconds * 1e9, answers.FOR_EVER_NS))
        self._loaded[model.name] = _Loaded(key, until)
        return anyio.current_time() - began

    def _is_cold(self, model: FakeModel, key: tuple[Any, ...]) -> bool:
        loaded = self._loaded.get(model.name)
        return loaded is None or loaded.key != key

    def _after(self, model: FakeModel, keep_alive: float | None) -> None:
        if keep_alive == 0:
            self._loaded.pop(model.name, None)


_CREATED = 1_795_248_354  # seconds since 1970: when the models of the captures were made
_NAN = b"\x00\x00\xc0\x7f" if memoryview(b"\x01\x00").cast("H")[0] == 1 else b"\x7f\xc0\x00\x00"

_Probe = Callable[[FakeNode, bytes], Answer]
_PROBES: dict[str, dict[str, _Probe]] = {
    "/": {"GET": FakeNode._root, "HEAD": FakeNode._root},
    "/api/version": {"GET": FakeNode._version, "HEAD": FakeNode._version},
    "/api/tags": {"GET": FakeNode._tags, "HEAD": FakeNode._tags},
    "/api/ps": {"GET": FakeNode._ps},
    "/api/show": {"POST": FakeNode._show},
    "/api/copy": {"POST": FakeNode._copy},
    "/api/delete": {"DELETE": FakeNode._delete},
    "/v1/models": {"GET": FakeNode._openai_models},
}
_WORK = {
    "/api/embed": FakeNode._api_embed,
    "/api/embeddings": FakeNode._api_embeddings,
    "/v1/embeddings": FakeNode._v1_embeddings,
    "/api/chat": FakeNode._api_chat,
    "/api/generate": FakeNode._api_generate,
}


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model in memory: the options that it was loaded with, and until when (ns since 1970)."""

    key: tuple[Any, ...]
    until: int


@dataclass(slots=True)
class _Embedded:
    floats: bytearray
    dim: int
    tokens: int = 0
    seconds: float = 0.0
    load_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Voice:
    """How chat and generate word what they otherwise do alike."""

    model: str
    write_part: Callable[[str, str, str], dict[str, Any]]
    write_final: Callable[..., dict[str, Any]]

    def part(self, now: str, content: str) -> dict[str, Any]:
        return self.write_part(self.model, now, content)

    def final(self, now: str, reason: str, *details: Any) -> dict[str, Any]:
        return self.write_final(self.model, now, reason, *details)


@dataclass(frozen=True, slots=True)
class _Said:
    tokens: list[str]
    reason: str


class _Work:
    """A request being answered, and whether it has a slot."""

    def __init__(self, record: Record, slots: Slots) -> None:
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


class _Pace:
    """Pays costs against the clock: what one sleep takes too long, the next takes less.

    So a thousand items of 1 ms take a second also where a sleep of 1 ms takes 2.
    """

    def __init__(self) -> None:
        self._due = anyio.current_time()

    async def pay(self, seconds: float) -> None:
        self._due += seconds
        if seconds and anyio.current_time() < self._due:
            await anyio.sleep_until(self._due)


def _broken(fault: Fault | None, path: str) -> Answer | None:
    """The answer of a node that does not come to read the request."""
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
    return answers.refuse(refusal, openai=path.startswith("/v1/"))


def _whole(answer: Answer) -> Reply:
    return Reply(answer.status, answer.content_type, answer.body)


def _generate_final(
    model: str, now: str, reason: str, metrics: answers.Metrics | None = None, content: str = ""
) -> dict[str, Any]:
    # Token ids mean nothing here, but a client that hands them back must find some.
    context = range(metrics.prompt_eval_count + metrics.eval_count) if metrics else ()
    return answers.generate_final(model, now, reason, metrics, content, context)


def _echo(prompt: str, options: Mapping[str, Any]) -> _Said:
    """The prompt's own words as tokens, up to ``num_predict`` of them."""
    tokens = re.findall(r"\s*\S+", prompt) or ["..."]
    limit = options.get("num_predict")
    if isinstance(limit, int) and 0 <= limit < len(tokens):
        return _Said(tokens[:limit], "length")
    return _Said(tokens, "stop")


def _dim(model: FakeModel, dimensions: int) -> int:
    return min(dimensions or model.dim, model.dim)


def _knows_base64(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return numbers is None or tuple(map(int, numbers.groups())) >= (0, 12, 7)


def _now() -> str:
    return answers.timestamp(time.time_ns())


def _ns(seconds: float) -> int:
    # Ollama leaves out a duration of zero, and no real one is.
    return max(1, round(seconds * 1e9))
