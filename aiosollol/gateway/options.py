"""How a gateway behaves: `GatewayOptions`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from aiosollol.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """How a gateway behaves. Raises InvalidInput for what cannot be.

    allow_admin: whether models can be pulled, made, copied and deleted through it.
    max_body_bytes: the largest request; what is larger is answered 413.
    gather_seconds: how long a text that comes alone waits for others when many come at once, so
    that they go to a node as one list; 0 turns that off. gather_above: how many single texts per
    node have to be under way for one model before that begins.
    batch_model: what documents are queued for that name no model; None lets them be refused.
    """

    allow_admin: bool = False
    max_body_bytes: int = 64 << 20
    gather_seconds: float = 0.002
    gather_above: int = 4
    batch_model: str | None = "nomic-embed-text"

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "gather_above"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInput(f"{name} must be a whole number from 1 on, not {value!r}")
        seconds = self.gather_seconds
        if not isinstance(seconds, int | float) or not 0.0 <= seconds < math.inf:
            raise InvalidInput(f"gather_seconds must be seconds from 0 on, not {seconds!r}")


class Served(NamedTuple):
    """A request that is over, as metrics want to know it.

    endpoint: the path as it is registered, such as "/api/chat"; "" where there is none. status: of
    the answer, 499 if the client left before there was one. seconds: from its head to the last byte
    of its answer. node: who answered, "" if none was asked, or several were.
    """

    endpoint: str
    method: str
    status: int
    seconds: float
    node: str
