"""`Limiter`: how much one client may ask at once, and how often."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable
from dataclasses import dataclass

from aiosollol.errors import InvalidInput
from aiosollol.gateway.keys import ApiKey

MIB = 1 << 20
_TIDY_FROM = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What holds for every client: a key, or an address where there are no keys.

    max_in_flight: requests under way. rate: requests a second, 0 for any number; burst: how many
    of them at once after a pause, 0 for as many as in a second. max_body: bytes of a request.
    max_bodies: of all large requests under way, of all clients; one alone is let in anyway.
    body_timeout: seconds for a body, and one more for each 4 kB of it.
    """

    max_in_flight: int = 1000
    rate: float = 0.0
    burst: int = 0
    max_body: int = 64 * MIB
    max_bodies: int = 1024 * MIB
    body_timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_in_flight", "max_body", "max_bodies"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1")
        if not 0 <= self.rate < math.inf or self.burst < 0:
            raise InvalidInput("rate and burst must be numbers from 0 on")
        if not 0 < self.body_timeout < math.inf:
            raise InvalidInput("body_timeout must be a number of seconds above 0")


class _Client:
    """One client: what it has under way, and its token bucket as it was at `at`."""

    __slots__ = ("at", "in_flight", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.in_flight = 0
        self.tokens = tokens
        self.at = at


class Limiter:
    """Counts what each client has under way, and a token bucket for each that has a rate.

    clock: seconds. limits: may be replaced while it is used.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._clients: dict[str, _Client] = {}
        self._tidy_at = _TIDY_FROM

    def __len__(self) -> int:
        return len(self._clients)

    def enter(self, name: str, key: ApiKey | None = None) -> float | None:
        """Let a request of this client in, or say after how many seconds it may come again.

        Who was let in has to `leave`.
        """
        rate, burst, most = self._terms(key)
        client = self._clients.get(name)
        if client is None:
            if len(self._clients) >= self._tidy_at:
                self._tidy()
            client = self._clients[name] = _Client(burst, self._clock() if rate else 0.0)
        if client.in_flight >= most:
            return 1.0
        if rate:
            now = self._clock()
            tokens = min(burst, client.tokens + (now - client.at) * rate)
            client.tokens, client.at = tokens, now
            if tokens < 1.0:
                return (1.0 - tokens) / rate
            client.tokens = tokens - 1.0
        client.in_flight += 1
        return None

    def leave(self, name: str) -> None:
        """A request of this client is done."""
        self._clients[name].in_flight -= 1

    def _terms(self, key: ApiKey | None) -> tuple[float, float, int]:
        limits = self.limits
        if key is None:
            rate, burst, most = limits.rate, limits.burst, limits.max_in_flight
        else:
            rate = key.rate or limits.rate
            burst = key.burst or (0 if key.rate else limits.burst)
            most = key.in_flight or limits.max_in_flight
        return rate, burst or max(1.0, rate), most

    def _tidy(self) -> None:
        """Forget who has nothing under way. At worst it has its burst anew, a minute too soon."""
        now = self._clock()
        for name, client in list(self._clients.items()):
            if not client.in_flight and (now - client.at > 60.0 or not client.at):
                del self._clients[name]
        self._tidy_at = max(_TIDY_FROM, 2 * len(self._clients))


def client_of(address: str) -> str:
    """Whom an address counts as: itself, or with IPv6 its /64, which is what one host has."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
