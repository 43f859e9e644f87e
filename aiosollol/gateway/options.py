"""`GatewayOptions`: the options of a gateway."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from aiosollol.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """The options of a gateway. Raises InvalidInput for invalid values.

    allow_admin: whether models can be pulled, created, copied and deleted through it.
    max_body_bytes: the largest request; larger ones are answered 413.
    max_texts: texts of one request; more are answered 413.
    max_answer_bytes: of one answer with vectors (413), and of all that are under way (503).
    processes: that share `max_answer_bytes` for all answers.
    gather_seconds: how long a single text waits for others when many come at once, so that they go
        to a node as one list; 0 turns this off.
    gather_above: single texts in flight per node, for one model, above which gathering starts.
    batch_model: the model of queued documents that name none; None refuses them.
    """

    allow_admin: bool = False
    max_body_bytes: int = 64 << 20
    max_texts: int = 100_000
    max_answer_bytes: int = 256 << 20
    processes: int = 1
    gather_seconds: float = 0.002
    gather_above: int = 4
    batch_model: str | None = "nomic-embed-text"

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes",
            "max_texts",
            "max_answer_bytes",
            "processes",
            "gather_above",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInput(f"{name} must be a whole number of at least 1, not {value!r}")
        seconds = self.gather_seconds
        if not isinstance(seconds, int | float) or not 0.0 <= seconds < math.inf:
            raise InvalidInput(f"gather_seconds must be a number of at least 0, not {seconds!r}")


class Served(NamedTuple):
    """A finished request, for metrics.

    endpoint: the registered path, such as "/api/chat"; "" if there is none.
    status: of the response; 499 if the client left before there was one.
    seconds: from the request's head to the last byte of the response.
    node: the node that answered; "" if none or several were asked.
    """

    endpoint: str
    method: str
    status: int
    seconds: float
    node: str
