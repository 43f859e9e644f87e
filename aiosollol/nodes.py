"""One node in use: what is known of it, what it is doing, and who waits for a place on it."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple, Protocol

import anyio

from aiosollol.core import breaker as breakers
from aiosollol.core import concurrency, memory
from aiosollol.core.breaker import Breaker
from aiosollol.core.concurrency import Concurrency, Sample
from aiosollol.core.cost import Cost
from aiosollol.core.discovered import Source
from aiosollol.core.node import NodeSpec, NodeState, full_name
from aiosollol.core.routing import RouteRequest
from aiosollol.core.share import Backlog, Standing, Steady
from aiosollol.core.stats import NodeCounters, NodeStats
from aiosollol.core.waiting import WaitingRoom

BATCH_WINDOW = 2
"""Chunks under way on a node at once: one is computed while the next is on the wire."""

_GUESSED_LOAD_SECONDS = 5.0


class Gate(Protocol):
    """What one task waits at until another opens it. `anyio.Event` is one, and asyncio has a much
    cheaper one (`asyncio_parts.FutureGate`)."""

    def set(self) -> object: ...
    async def wait(self) -> object: ...


class Waiter:
    """Somebody who waits for a place. `arrived` is set with a place on `node`, or without one.

    until: when to look for another node, by the registry's clock.
    """

    __slots__ = ("arrived", "node", "until")

    def __init__(self, arrived: Gate, until: float) -> None:
        self.arrived = arrived
        self.until = until
        self.node: Node | None = None


Room = WaitingRoom[Waiter]


class Work(NamedTuple):
    """What a cost or a limit is learned for: a model by its full name, and a kind of request."""

    model: str
    kind: str


class Node:
    """One node in use. `state` is what is known of it; everything else is what it is doing.

    in_flight: requests of this process under way on it. slots: places for chunks of batches.
    limit: how many live requests it should have at once, as was learned. cap: how many requests of
    any kind it may have at once, as its user and `allow` say.
    costs: of embedding, by full model name; talk_costs: of other requests.
    speaks_base64: whether it answers vectors in base64, None until it was asked.
    source: how it was found, None if somebody named it.
    backlog, standing, breaker: see `core.share` and `core.breaker`. returned_at: when it came back
    from being down, by the registry's clock.
    outrun: the request that another node answered first, though this one had more time for it.
    loading: models that a request of ours is loading. distrusted: models whose vectors are not
    those of other nodes.
    """

    __slots__ = (
        "_adapted",
        "_chunks",
        "_concurrency",
        "_left",
        "_load_seconds",
        "_options",
        "_room",
        "_steady",
        "_waiting_chunks",
        "_warmed",
        "backlog",
        "breaker",
        "cap",
        "costs",
        "counters",
        "distrusted",
        "disturbed_at",
        "in_flight",
        "is_draining",
        "last_done",
        "limit",
        "loading",
        "name",
        "outrun",
        "queued",
        "returned_at",
        "slots",
        "source",
        "speaks_base64",
        "standing",
        "state",
        "talk_costs",
    )

    def __init__(self, spec: NodeSpec, room: Room | None = None) -> None:
        self.name = spec.name
        self.state = NodeState(spec)
        self.counters = NodeCounters()
        self.costs: dict[str, Cost] = {}
        self.talk_costs: dict[Work, Cost] = {}
        self.speaks_base64: bool | None = None
        self.source: Source | None = None
        self.in_flight = 0
        self._chunks = 0  # those of `in_flight` that are of batches
        self.queued = 0
        self.last_done = 0.0
        self.disturbed_at = 0.0
        self.returned_at = -math.inf
        self.is_draining = False
        self.outrun: RouteRequest | None = None
        self.backlog = Backlog()
        self.standing = Standing()
        self.breaker: Breaker = breakers.CLOSED
        self.loading: set[str] = set()
        self.distrusted: set[str] = set()
        self._room = Room(0) if room is None else room
        self._steady: dict[tuple[str, str], Steady] = {}
        self._left: anyio.Event | None = None
        self._warmed: set[str] = set()
        self._options: dict[str, object] = {}
        self._load_seconds: dict[str, float] = {}
        self._concurrency: dict[Work, Concurrency] = {}
        self._adapted = concurrency.start(spec.max_concurrency).allowed
        self._waiting_chunks: deque[anyio.Event] = deque()
        self.allow(None)
        self.slots = anyio.Semaphore(self.window, fast_acquire=True)

    def __repr__(self) -> str:
        condition = "down" if self.state.is_down else "up" if self.is_known else "unknown"
        return f"<Node {self.name} {condition}, {self.in_flight} in flight>"

    # What is known.

    @property
    def spec(self) -> NodeSpec:
        return self.state.spec

    @property
    def priority(self) -> int:
        return self.state.spec.priority

    @property
    def is_known(self) -> bool:
        """Whether the node has answered, or failed to, at least once."""
        return self.state.models is not None or self.state.is_down

    @property
    def is_down(self) -> bool:
        return self.state.is_down

    @property
    def error(self) -> str:
        return self.state.error

    @property
    def cpu_load(self) -> float | None:
        return self.state.cpu_load

    @property
    def gpu_free_mem(self) -> float | None:
        """MB of free GPU memory, as the original counts it; None if unknown."""
        free = memory.gpu_free(self.state)
        return None if free is None else free / 1e6

    @property
    def window(self) -> int:
        """How many chunks of a batch may be under way on it."""
        return min(BATCH_WINDOW, self.spec.max_concurrency or BATCH_WINDOW)

    @property
    def latency(self) -> float:
        """Seconds that it usually takes to answer; 0 before its first answer."""
        return self.counters.latency

    def has_model(self, model: str) -> bool:
        return self.state.has_model(model)

    def digest(self, model: str) -> str:
        """Of `model`, as the node says; "" if it does not."""
        known = self.state.find_model(model)
        return "" if known is None else known.digest

    def is_distrusted(self, model: str) -> bool:
        """Whether its vectors of `model` are not those of other nodes."""
        return full_name(model) in self.distrusted

    # What a request costs.

    def cost(self, model: str) -> Cost:
        """What embedding with `model` costs here, as far as is known."""
        return self.costs.get(full_name(model)) or Cost.unknown(gpu=self.state.has_gpu())

    def seconds(self, request: RouteRequest) -> float | None:
        """What a request takes alone; None if the node never answered one of its kind."""
        steady = self._steady.get((full_name(request.model), request.kind))
        return None if steady is None else steady.seconds(request.tokens)

    def ahead(self, now: float) -> float:
        """Seconds until it is done with all that this program gave it."""
        return self.backlog.ahead(now)

    def is_cold(self, model: str, options: object = None) -> bool:
        """Whether it will have to load `model` first, as far as is known.

        options: what about the request makes a server load the model anew, see
        `core.request.reload_key`.
        """
        # What is not known is taken for cold: to load again what is there costs next to nothing.
        loaded = self.state.loaded or ()
        name = full_name(model)
        return (name not in self._warmed and name not in loaded) or self.reloads(model, options)

    def reloads(self, model: str, options: object) -> bool:
        """Whether it would load `model` anew, which it used last with other options."""
        name = full_name(model)
        return name in self._options and self._options[name] != options

    def load_seconds(self, model: str) -> float:
        """Seconds to load `model` first; 0 if it is in memory, or is being loaded already."""
        name = full_name(model)
        loaded = self.state.loaded
        if loaded is None or name in self._warmed or name in loaded or name in self.loading:
            return 0.0
        return self._load_seconds.get(name, _GUESSED_LOAD_SECONDS)

    def fits(self, model: str) -> bool | None:
        """Whether `model` is in GPU memory or has room there; None if unknown."""
        return memory.fits(self.state, model)

    # Places.

    def try_enter(self) -> bool:
        """Take a place for a live request if there is one. `leave` must follow."""
        # A batch always has its chunks under way: they must not keep out every live request.
        if self.in_flight - self._chunks >= max(1, self.limit - self._chunks):
            return False
        if self.in_flight >= self.cap:
            return False
        self.in_flight += 1
        return True

    async def enter(self) -> None:
        """Begin a request of a batch, as soon as `cap` lets it.

        ``leave(is_live=False)`` must follow.
        """
        if self.in_flight < self.cap:
            self.in_flight += 1
            self._chunks += 1
            return
        has_place = anyio.Event()
        self._waiting_chunks.append(has_place)
        try:
            await has_place.wait()
        except BaseException:
            if has_place.is_set():  # a place was given to us, and we do not want it any more
                self.leave(is_live=False)
            else:
                self._waiting_chunks.remove(has_place)
            raise

    def leave(self, *, is_live: bool = True) -> None:
        """End a request, however it went. Whoever waits for the place has it at once."""
        self.in_flight -= 1
        self._chunks -= not is_live
        if self._waiting_chunks:
            self._call_chunks()
        if self.queued:
            self.call_waiting()
        if self._left is not None:
            self._left.set()
            self._left = None

    def allow(self, places: int | None) -> None:
        """Let it have so many requests of this program at once; None for no limit but the user's.

        What is under way goes on, so there may be more for a while.
        """
        own = self.spec.max_concurrency
        self.cap = min(math.inf if own is None else own, math.inf if places is None else places)
        self._bound()
        self._call_chunks()
        self.call_waiting()

    @property
    def wanted(self) -> int:
        """How many requests it would have now if none had to wait: those under way among them."""
        return self.in_flight + self.queued + len(self._waiting_chunks)

    def _call_chunks(self) -> None:
        while self._waiting_chunks and self.in_flight < self.cap:
            self.in_flight += 1
            self._chunks += 1
            self._waiting_chunks.popleft().set()

    def _bound(self) -> None:
        # Where there is no place, a request should not wait for one while others have some.
        self.limit = int(min(self._adapted, self.cap))

    async def wait_left(self) -> None:
        """Return when the next request has ended."""
        if self._left is None:
            self._left = anyio.Event()
        await self._left.wait()

    def call_waiting(self) -> None:
        """Let in those who wait, as far as there are places."""
        while self.queued and self.try_enter():
            waiter = self._room.take(self.name)
            if waiter is None:
                self.leave()
                return
            self.queued -= 1
            waiter.node = self
            waiter.arrived.set()

    def send_late_away(self, now: float) -> None:
        """Let those look for another node who have waited for this one long enough."""
        for ticket in self._room.tickets(self.name):
            if ticket.item.until <= now and self._room.remove(ticket):
                self.queued -= 1
                ticket.item.arrived.set()

    def send_away(self) -> None:
        """Let those who wait look for another node: this one is no good any more."""
        while (waiter := self._room.take(self.name)) is not None:
            self.queued -= 1
            waiter.arrived.set()

    # What was learned from answers.

    def learn(self, model: str, tokens: float, sent_at: float, now: float) -> Cost:
        """An embedding of `tokens`, sent at `sent_at`, was answered: learn what it cost.

        What counts is the time that the node worked on it alone. A node computes one request after
        another, so that began when it was done with the one before. If one beside it failed or was
        cancelled, nobody knows when that was, and nothing is learned.
        """
        name = full_name(model)
        known = self.costs.get(name) or Cost.unknown()
        if sent_at < self.disturbed_at:
            return known
        worked_from = max(sent_at, self.last_done)
        self.costs[name] = cost = known.observe(tokens, now - worked_from)
        self._follow(Work(name, "embed"), cost)
        return cost

    def learn_talk(self, work: Work, tokens: float, seconds: float) -> None:
        """A chat or generate with a prompt of `tokens` was answered in `seconds`."""
        known = self.talk_costs.get(work) or Cost.unknown()
        self.talk_costs[work] = cost = known.observe(tokens, seconds)
        self._follow(work, cost)

    def _follow(self, work: Work, cost: Cost) -> None:
        steady = self._steady.get(work)
        if steady is None:
            self._steady[work] = Steady(cost)
        else:
            steady.follow(cost)

    def learn_limit(self, work: Work, sample: Sample) -> None:
        """A live request ended: adapt how many there should be at once."""
        known = self._concurrency.get(work) or concurrency.start(self.spec.max_concurrency)
        self._concurrency[work] = adapted = concurrency.adapt(known, sample)
        if len(self._concurrency) == 1:
            self._adapted = adapted.allowed
        else:
            self._adapted = max(each.allowed for each in self._concurrency.values())
        self._bound()

    def warmed(self, model: str, options: object) -> None:
        """`model` answered, so it is in memory, with these options."""
        name = full_name(model)
        self._warmed.add(name)
        self._options[name] = options

    def learn_load(self, model: str, seconds: float) -> None:
        """Loading `model` and answering with it took `seconds`."""
        self._load_seconds[full_name(model)] = seconds

    def forget_warmed(self) -> None:
        """The node has told what it has in memory: that counts, and not what we concluded."""
        self._warmed.clear()

    # Accounts.

    def succeed(self, sent_at: float, now: float) -> None:
        """A request was answered."""
        self.counters.success(now - sent_at)
        self.last_done = now

    def disturb(self, now: float) -> None:
        """A request failed or was given up: what was sent beside it tells nothing of its cost."""
        self.disturbed_at = now

    def stats(self, now: float) -> NodeStats:
        state, spec = self.state, self.state.spec
        return NodeStats(
            key=spec.key,
            name=spec.name,
            host=spec.url,
            priority=spec.priority,
            is_available=not state.is_down and not self.is_draining,
            active=self.in_flight,
            counters=self.counters,
            error=state.error,
            queued=self.queued,
            limit=self.limit,
            breaker=self.breaker.phase(now),
            cpu_load=state.cpu_load,
            gpu_free_mem=self.gpu_free_mem,
            is_draining=self.is_draining,
        )


def has_same_vectors(node: Node, model: str, digest: str | None) -> bool:
    """Whether the vectors of `model` on `node` may stand beside those of the other nodes."""
    if node.is_distrusted(model):
        return False
    return digest is None or node.digest(model) == digest
