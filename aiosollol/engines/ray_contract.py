"""What a program and its workers in Ray agree upon. All of it can be pickled."""

from __future__ import annotations

from typing import Any, NamedTuple

from aiosollol.engines.worker import NodeEntry

DONE, LOST = "done", "lost"
"""What became of a partition: there is a result, or the worker died over it."""


class Contract(NamedTuple):
    """What a worker is made with. settings: the client's. group, weight: whose share it uses."""

    settings: dict[str, Any]
    group: str
    weight: float
    nodes: tuple[NodeEntry, ...]


class Greeting(NamedTuple):
    """How a worker is when it has started. down: nodes it does not reach, each with why."""

    name: str
    version: str
    up: tuple[str, ...]
    down: dict[str, str]
