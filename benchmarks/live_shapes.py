"""Named cluster shapes and workloads for the simulation of live requests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

_LOAD = 0.7


@dataclass(slots=True)
class Shape:
    """Nodes with these speeds, used by a number of programs.

    fate: (when, as a fraction of all requests; which node; a factor by which it becomes slower, or
    "die", or "return").
    noise: standard deviation of the logarithm of a request's duration.
    wire: seconds between a program and a node, each way, by which answers are known late.
    limit: requests in flight on a node at once for each program; others queue.
    is_judged: whether the target applies.
    """

    name: str
    speeds: Sequence[float]
    programs: int = 1
    load: float = _LOAD
    noise: float = 0.25
    fate: Sequence[tuple[float, int, float | str]] = ()
    wire: float = 0.0005
    limit: int = sys.maxsize
    is_judged: bool = True


def all_shapes() -> list[Shape]:
    unequal = [float(speed) for speed in range(1, 11)]
    return [
        Shape("10 nodes, speeds 1 to 10", unequal),
        Shape("the same, noise 0.5", unequal, noise=0.5),
        Shape("2 nodes, 1 and 10", [1.0, 10.0]),
        Shape("3 of 1, one of 10", [1.0, 1.0, 1.0, 10.0]),
        Shape("4 of 10, 6 of 1", [10.0] * 4 + [1.0] * 6),
        Shape("5 nodes, each 1.8 times the next", [1.0, 1.8, 3.2, 5.6, 10.0]),
        Shape("32 nodes, 1 to 10", [1 + 9 * index / 31 for index in range(32)]),
        Shape("1 to 10, at 90 %", unequal, load=0.9),
        Shape("1 to 10, at 30 %", unequal, load=0.3),
        Shape("the fastest 5 times slower, for a while", unequal, load=0.5, fate=_slow(9)),
        Shape("the fastest dies, and returns", unequal, load=0.5, fate=_death(9)),
        Shape("1 to 10, answers 20 ms old", unequal, wire=0.02),
        Shape("1 to 10, at most 2 under way", unequal, limit=2),
        Shape("the same, the fastest slower", unequal, 1, 0.5, fate=_slow(9), limit=2),
        Shape("the same, the fastest dies", unequal, 1, 0.5, fate=_death(9), limit=2),
        Shape("6 equal nodes", [5.0] * 6, is_judged=False),
        Shape("2 programs", unequal, programs=2, is_judged=False),
        Shape("4 programs", unequal, programs=4, is_judged=False),
        Shape("4 programs, a node slower", unequal, 4, 0.5, fate=_slow(9), is_judged=False),
        Shape("4 programs, a node dies", unequal, 4, 0.5, fate=_death(9), is_judged=False),
    ]


def _slow(node: int) -> list[tuple[float, int, float | str]]:
    return [(0.4, node, 5.0), (0.6, node, 0.2)]


def _death(node: int) -> list[tuple[float, int, float | str]]:
    return [(0.4, node, "die"), (0.6, node, "return")]
