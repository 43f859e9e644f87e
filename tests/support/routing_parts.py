"""Nodes as the strategies see them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aiosollol.core.routing.chat_cost import ChatSeconds
from aiosollol.core.routing.circuit_breaker import (
    CLOSED,
    Breaker,
)
from aiosollol.core.routing.node_health import (
    NodeHealth,
)
from aiosollol.core.routing.strategies import (
    RouteRequest,
)

REQUEST = RouteRequest("m", 50.0)
NOW = 1.0


@dataclass
class Node:
    """A node with given values. failures and peak are those of a moment ago."""

    name: str
    seconds_: float | None = 0.1
    ahead_: float = 0.0
    load: float = 0.0
    fits_: bool | None = None
    priority: int = 0
    in_flight: int = 0
    queued: int = 0
    limit: int = 100
    latency: float = 0.0
    cpu_load: float | None = None
    gpu_free_mem: float | None = None
    returned_at: float = -math.inf
    is_down: bool = False
    error: str = ""
    is_draining: bool = False
    breaker: Breaker = CLOSED
    digest_: str = "sha"
    models: tuple[str, ...] = ("m",)
    failures: int = 0
    peak: float = 1.0
    standing: NodeHealth = field(default_factory=lambda: NodeHealth(NOW))

    def __post_init__(self) -> None:
        for _ in range(self.failures):
            self.standing.failed(NOW)
        if self.peak > 1.0:
            self.standing.answered(self.peak, 1.0, NOW)

    def seconds(self, request: RouteRequest) -> float | None:
        return self.seconds_

    def ahead(self, now: float) -> float:
        return self.ahead_

    def wait(self, request: RouteRequest, now: float) -> float:
        return self.ahead_ + self.queued * (self.seconds_ or 0.0)

    def chat_seconds(self, request: RouteRequest) -> ChatSeconds | None:
        return None if self.seconds_ is None else ChatSeconds(0.02, self.seconds_ - 0.02)

    def has_slot(self, request: RouteRequest) -> bool:
        return self.in_flight < self.limit

    def load_seconds(self, model: str) -> float:
        return self.load

    def fits(self, model: str) -> bool | None:
        return self.fits_

    def has_model(self, model: str) -> bool:
        return model in self.models

    def digest(self, model: str) -> str:
        return self.digest_

    def is_distrusted(self, model: str) -> bool:
        return False
