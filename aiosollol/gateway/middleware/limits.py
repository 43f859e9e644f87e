"""`Limiter`: each client's rate and requests in flight."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from aiosollol.errors import InvalidInput
from aiosollol.gateway.middleware.keys import ApiKey
from aiosollol.gateway.middleware.shared_counts import Cell, SharedCounts

MIB = 1 << 20
_TIDY_FROM = 1024
_LOOK_SECONDS = 0.05  # between checks whether a request has ended in another process


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of every client: a key, or an address if there are no keys.

    max_in_flight: requests at the same time; None for any number.
    rate: requests a second; 0 for any number.
    burst: requests at once after a pause; 0 for those of one second.
    max_body: bytes of a request's body.
    max_bodies: bytes of all bodies in memory, decoded, of all clients, of which one client may hold
        half; a single body is always admitted.
    body_timeout: seconds for a body, plus one for each 4 kB of it.
    wait_timeout: seconds that a request over `max_in_flight` or `max_bodies` waits before it is
        refused.

    Raises InvalidInput for invalid values.
    """

    max_in_flight: int | None = None
    rate: float = 0.0
    burst: int = 0
    max_body: int = 64 * MIB
    max_bodies: int = 256 * MIB
    body_timeout: float = 30.0
    wait_timeout: float = 300.0

    def __post_init__(self) -> None:
        for name in ("max_in_flight", "max_body", "max_bodies"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{name} must be at least 1")
        if not 0 <= self.rate < math.inf or self.burst < 0:
            raise InvalidInput("rate and burst must be finite numbers of at least 0")
        if not 0 < self.body_timeout < math.inf:
            raise InvalidInput("body_timeout must be a number of seconds above 0")
        if not 0 <= self.wait_timeout < math.inf:
            raise InvalidInput("wait_timeout must be a finite number of seconds of at least 0")


class Exceeded(NamedTuple):
    """A limit that a request exceeds.

    retry_after: seconds until a retry.
    can_wait: whether the request can wait until another one of this client ends.
    """

    retry_after: float
    message: str
    can_wait: bool = False


class _Client:
    """One client: its requests in flight, and its token bucket as it was at `at`.

    most: its limit of requests in flight.
    line: requests that wait for others of this client to end.
    cell: its counts in all processes; None if only those of this one count.
    is_looking: whether requests of other processes are waited for.
    """

    __slots__ = ("at", "cell", "in_flight", "is_looking", "line", "most", "tokens")

    def __init__(self, tokens: float, at: float, cell: Cell | None) -> None:
        self.in_flight = 0
        self.cell = cell
        self.is_looking = False
        self.most = math.inf
        self.line: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.tokens = tokens
        self.at = at

    def begin(self) -> bool:
        """Count a request as in flight, if that is within the limit."""
        if self.in_flight >= self.most:
            return False
        self.in_flight += 1
        if self.cell is not None:
            self.cell.set_in_flight(self.in_flight)  # first: two processes may want the last place
            if self.in_flight + self.cell.in_flight_elsewhere() > self.most:
                self.end()
                return False
        return True

    def end(self) -> None:
        """Count a request as no longer in flight."""
        self.in_flight -= 1
        if self.cell is not None:
            self.cell.set_in_flight(self.in_flight)

    def spend(self, now: float, rate: float, burst: float) -> float:
        """Take a token, or return the number that is missing."""
        if self.cell is not None:
            tokens, at = self.cell.bucket()
            if at:  # else no process has taken one
                self.tokens, self.at = tokens, at
        self.tokens = min(burst, self.tokens + max(0.0, now - self.at) * rate)
        self.at = now
        if self.tokens < 1.0:
            return 1.0 - self.tokens
        self.tokens -= 1.0
        if self.cell is not None:
            self.cell.set_bucket(self.tokens, now)
        return 0.0


class Limiter:
    """Counts each client's requests in flight, with a token bucket for each that has a rate.

    limits: may be replaced while it is used.
    clock: returns seconds.
    shared: the counts of all processes of the gateway, whose sum is limited; None for one process.
    """

    def __init__(
        self, limits: Limits, clock: Callable[[], float], shared: SharedCounts | None = None
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._shared = shared
        self._clients: dict[str, _Client] = {}
        self._tidy_at = _TIDY_FROM

    def __len__(self) -> int:
        return len(self._clients)

    def enter(self, name: str, key: ApiKey | None = None) -> Exceeded | None:
        """Admit a request of this client, which must `leave`; else return the limit it exceeds."""
        rate, burst, most = self._terms(key)
        client = self._clients.get(name)
        if client is None:
            if len(self._clients) >= self._tidy_at:
                self._tidy()
            cell = None if self._shared is None else self._shared.cell(name)
            client = self._clients[name] = _Client(burst, self._clock() if rate else 0.0, cell)
        client.most = most
        if rate and (missing := client.spend(self._clock(), rate, burst)):
            return Exceeded(missing / rate, _rate_message(rate, key))
        if client.line or not client.begin():
            return Exceeded(1.0, _in_flight_message(most, key), can_wait=True)
        return None

    async def wait(self, name: str) -> bool:
        """Wait in this client's line; whether the request was admitted within `wait_timeout`.

        For a request that `enter` has just refused with `can_wait`. After True it must `leave`.
        """
        client = self._clients[name]
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        client.line[place] = None
        try:
            async with asyncio.timeout(self.limits.wait_timeout):
                if client.cell is not None and not client.is_looking:
                    self._look(client)
                await place
        except BaseException as error:
            client.line.pop(place, None)
            if place.done() and not place.cancelled():  # it was admitted at this very moment
                self.leave(name)
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def leave(self, name: str) -> None:
        """End a request of this client, and admit the first one in its line."""
        client = self._clients[name]
        client.end()
        self._admit(client)

    def _look(self, client: _Client) -> None:
        """Check while there is a line whether a request has ended in another process."""
        self._admit(client)
        client.is_looking = bool(client.line)
        if client.is_looking:
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look, client)

    def _admit(self, client: _Client) -> None:
        """Admit the first requests in a client's line."""
        while client.line:
            place = next(iter(client.line))
            if not place.done():
                if not client.begin():
                    break
                place.set_result(None)
            del client.line[place]

    def _terms(self, key: ApiKey | None) -> tuple[float, float, float]:
        limits = self.limits
        rate, burst = limits.rate, limits.burst
        most: float = math.inf if limits.max_in_flight is None else limits.max_in_flight
        if key is not None:
            if key.rate:
                rate, burst = key.rate, 0
            burst, most = key.burst or burst, key.in_flight or most
        return rate, burst or max(1.0, rate), most

    def _tidy(self) -> None:
        """Forget idle clients. At worst, one gets its burst back a minute too soon."""
        now = self._clock()
        for name, client in list(self._clients.items()):
            if not (client.in_flight or client.line) and (now - client.at > 60.0 or not client.at):
                if client.cell is not None:
                    client.cell.clear()
                del self._clients[name]
        self._tidy_at = max(_TIDY_FROM, 2 * len(self._clients))


def _in_flight_message(most: float, key: ApiKey | None) -> str:
    limit = (
        f"in_flight={most:g} of this key"
        if key is not None and key.in_flight
        else f"max_in_flight={most:g} of each client (--max-in-flight)"
    )
    return f"too many requests at once: over {limit}; send fewer at once, or try again later"


def _rate_message(rate: float, key: ApiKey | None) -> str:
    limit = (
        f"rate={rate:g} a second of this key"
        if key is not None and key.rate
        else f"rate_limit={rate:g} a second of each client (--rate-limit)"
    )
    return f"too many requests: over {limit}; try again later"
