"""Live requests in virtual time: nodes with true speeds, and the programs' estimates of them.

Requests of different lengths arrive at random (Poisson). Each node computes one after another, as
Ollama does with an embedding model, with lognormal noise. The programs know nothing at first: they
learn from answers, with the pool's own code, and choose by `core.routing.strategies`.
"""

from __future__ import annotations

import heapq
import random
import sys
from dataclasses import dataclass, field

from aiosollol.core.routing import circuit_breaker as breakers
from aiosollol.core.routing.circuit_breaker import CLOSED
from aiosollol.core.routing.node_health import Backlog, NodeHealth, Steady
from aiosollol.core.routing.retry import Failure
from aiosollol.core.routing.strategies import RouteRequest, route, strategy_of
from aiosollol.core.routing.wait_queue import WaitingRoom
from aiosollol.core.scheduling.cost import Cost
from benchmarks.live_shapes import Shape

_OVERHEAD, _PER_TOKEN = 0.0015, 1e-3  # seconds, of a node of speed 1
_TOKENS = (20, 400)
_SMOOTHING = 0.2


@dataclass(slots=True, eq=False)
class _Machine:
    """A node's true state."""

    speed: float
    is_dead: bool = False
    slowness: float = 1.0
    free_at: float = 0.0
    jobs: set[_Job] = field(default_factory=set)

    def seconds(self, tokens: float) -> float:
        return (_OVERHEAD + tokens * _PER_TOKEN / self.speed) * self.slowness


@dataclass(slots=True, eq=False)
class _Job:
    """A request on its way; `began` is when its caller asked."""

    program: _Program
    began: float
    tokens: float
    noise: float
    node: Known | None = None
    sent_at: float = 0.0
    predicted: float = 0.0
    expected: float = 0.0
    is_probe: bool = False
    attempt: int = 0
    tried: set[str] = field(default_factory=set)


class Known:
    """A node as one program knows it: what the registry's `Node` will be."""

    def __init__(self, index: int, limit: int = sys.maxsize) -> None:
        self.index = index
        self.name = f"n{index}"
        self.priority = 0
        self.in_flight = 0
        self.queued = 0
        self.limit = limit
        self.latency = 0.0
        self.cpu_load: float | None = None
        self.gpu_free_mem: float | None = None
        self.returned_at = -float("inf")
        self.standing = NodeHealth()
        self.backlog = Backlog()
        self.breaker = CLOSED
        self.cost = Cost.unknown()
        self.steady: Steady | None = None
        self.last_done = 0.0
        self.disturbed_at = 0.0

    def seconds(self, request: RouteRequest) -> float | None:
        return None if self.steady is None else self.steady.seconds(request.tokens)

    def ahead(self, now: float) -> float:
        return self.backlog.ahead(now)

    def wait(self, request: RouteRequest, now: float) -> float:
        # All requests are of one kind, and about as long.
        queued = self.queued * (self.seconds(request) or 0.0) if self.queued else 0.0
        return self.backlog.ahead(now) + queued

    def has_slot(self, request: RouteRequest) -> bool:
        return self.in_flight < self.limit

    def load_seconds(self, model: str) -> float:
        return 0.0

    def fits(self, model: str) -> bool | None:
        return None

    def send(self, job: _Job, request: RouteRequest, now: float) -> None:
        own = self.seconds(request)
        job.node, job.sent_at = self, now
        job.expected = 0.0 if own is None else own + self.ahead(now)
        job.predicted = Cost.unknown().seconds(request.tokens) if own is None else own
        job.is_probe = self.breaker.opens_at is not None
        if job.is_probe:
            self.breaker = breakers.advance(self.breaker, breakers.CallSent(), now)
        self.in_flight += 1
        self.backlog.enter(job.predicted, now)
        self.standing.asked(now)

    def answered(self, job: _Job, now: float) -> None:
        self._leave(job, now)
        seconds = now - job.sent_at
        self.latency += (seconds - self.latency) * (_SMOOTHING if self.latency else 1.0)
        if job.sent_at >= self.disturbed_at:
            worked = now - max(job.sent_at, self.last_done)
            self.learn(job.tokens, worked)
        self.last_done = now
        self.standing.answered(seconds, job.expected, now)
        if self.breaker is not CLOSED:
            self._advance(breakers.CallAnswered(job.is_probe), now)

    def learn(self, tokens: float, seconds: float) -> None:
        self.cost = self.cost.observe(tokens, seconds)
        if self.steady is None:
            self.steady = Steady(self.cost)
        else:
            self.steady.follow(self.cost)

    def failed(self, job: _Job, failure: Failure, now: float) -> None:
        self._leave(job, now)
        self.disturbed_at = now
        self.standing.failed(now)
        self._advance(breakers.CallFailed(failure, job.is_probe), now)

    def _leave(self, job: _Job, now: float) -> None:
        self.in_flight -= 1
        self.backlog.leave(job.predicted, now)

    def _advance(self, event: breakers.Event, now: float) -> None:
        was_closed = self.breaker.opens_at is None
        self.breaker = breakers.advance(self.breaker, event, now)
        if self.breaker.opens_at is None and not was_closed:
            self.returned_at = now


class _Program:
    """One program: what it knows of the nodes, and how it chooses."""

    def __init__(self, strategy: str, count: int, limit: int, rng: random.Random) -> None:
        self.nodes = [Known(index, limit) for index in range(count)]
        self.room: WaitingRoom[_Job] = WaitingRoom(sys.maxsize)
        self._strategy = strategy_of(strategy)
        self._rng = rng

    def choose(self, job: _Job, request: RouteRequest, now: float) -> Known:
        fit = [node for node in self.nodes if node.name not in job.tried] or self.nodes
        nodes = [node for node in fit if node.breaker.admits(now)]
        if not nodes:
            last = breakers.last_resort(((node, node.breaker) for node in fit), now)
            nodes = [last] if last is not None else fit
        return route(self._strategy, nodes, request, now, self._rng)


class Simulation:
    """Requests over one shape, by one strategy or "oracle". `run` it once.

    latencies: seconds of each request, by the caller's clock, retries included. failures: attempts
    that failed.
    """

    def __init__(self, shape: Shape, strategy: str, requests: int, seed: int) -> None:
        self._shape = shape
        self._requests = requests
        # Arrivals, lengths and noise are the same for every strategy.
        self._traffic = random.Random(seed)
        self._is_oracle = strategy == "oracle"
        self._machines = [_Machine(speed) for speed in shape.speeds]
        name = "performance" if self._is_oracle else strategy
        self._programs = [
            _Program(
                name,
                len(shape.speeds),
                sys.maxsize if self._is_oracle else shape.limit,
                random.Random(seed * 1000 + index + 1),
            )
            for index in range(shape.programs)
        ]
        self._events: list[tuple[float, int, str, _Job, int]] = []
        self._serial = 0
        self.latencies: list[float] = []
        self.failures = 0

    def run(self) -> Simulation:
        traffic, shape = self._traffic, self._shape
        mean = sum(_TOKENS) / 2
        rate = shape.load * sum(1 / machine.seconds(mean) for machine in self._machines)
        fates = [(int(at * self._requests), node, what) for at, node, what in shape.fate]
        now = 0.0
        for index in range(self._requests):
            now += traffic.expovariate(rate)
            self._play(now)
            for at, node, what in fates:
                if at == index:
                    self._strike(self._machines[node], what, now)
            noise = traffic.lognormvariate(-(shape.noise**2) / 2, shape.noise)
            program = self._programs[traffic.randrange(shape.programs)]
            self._send(_Job(program, now, traffic.uniform(*_TOKENS), noise), now)
        self._play(float("inf"))
        return self

    def _play(self, until: float) -> None:
        events = self._events
        while events and events[0][0] <= until:
            now, _, what, job, attempt = heapq.heappop(events)
            if attempt != job.attempt:
                continue  # the answer of a node that died
            node = job.node
            assert node is not None
            if what == "answered":
                self._machines[node.index].jobs.discard(job)
                self.latencies.append(now - job.began)
                node.answered(job, now)
                self._call_next(job.program, node, now)
                continue
            self.failures += 1
            node.failed(job, Failure.NODE if what == "refused" else Failure.ANSWER, now)
            job.tried.add(node.name)
            self._send(job, now)
            self._call_next(job.program, node, now)

    def _call_next(self, program: _Program, node: Known, now: float) -> None:
        """Whoever waits for a place on `node` has it, or looks for another if it is closed."""
        if not node.queued:
            return
        is_closed = node.breaker.opens_at is not None
        while node.queued and (is_closed or node.in_flight < node.limit):
            job = program.room.take(node.name)
            assert job is not None
            node.queued -= 1
            if is_closed:
                self._send(job, now)
            else:
                self._go(job, node, now)

    def _send(self, job: _Job, now: float) -> None:
        request = RouteRequest("m", job.tokens)
        node = self._best(job, now) if self._is_oracle else job.program.choose(job, request, now)
        if node.in_flight < node.limit:
            self._go(job, node, now)
        else:
            node.queued += 1
            job.program.room.add(job, node.name, now)

    def _go(self, job: _Job, node: Known, now: float) -> None:
        node.send(job, RouteRequest("m", job.tokens), now)
        job.attempt += 1
        machine = self._machines[node.index]
        if machine.is_dead:
            self._at(now + 2 * self._shape.wire, "refused", job)
            return
        machine.free_at = max(now + self._shape.wire, machine.free_at)
        machine.free_at += machine.seconds(job.tokens) * job.noise
        machine.jobs.add(job)
        self._at(machine.free_at + self._shape.wire, "answered", job)

    def _best(self, job: _Job, now: float) -> Known:
        """The oracle's choice."""
        best = min(
            (machine for machine in self._machines if not machine.is_dead),
            key=lambda machine: max(0.0, machine.free_at - now) + machine.seconds(job.tokens),
        )
        return job.program.nodes[self._machines.index(best)]

    def _strike(self, machine: _Machine, what: float | str, now: float) -> None:
        if what == "return":
            machine.is_dead, machine.free_at = False, now
        elif isinstance(what, float):
            machine.slowness *= what  # for what it is sent from now on
        else:
            machine.is_dead = True
            for job in machine.jobs:
                job.attempt += 1
                self._at(now + self._shape.wire, "lost", job)
            machine.jobs.clear()

    def _at(self, at: float, what: str, job: _Job) -> None:
        self._serial += 1
        heapq.heappush(self._events, (at, self._serial, what, job, job.attempt))
