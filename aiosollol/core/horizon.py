"""The earliest time at which several workers together can have done an amount of work.

Work is poured like water: each worker is a vessel whose floor is the time at which it becomes
free and whose width is its rate. The surface is the time when all is done, and a worker whose
floor lies above the surface gets nothing.
"""

from __future__ import annotations

from collections.abc import Iterable


def earliest_finish(workers: Iterable[tuple[float, float]], work: float) -> float:
    """The smallest time T with ``sum(rate * max(0, T - free)) >= work``.

    `workers` are pairs (time at which it is free, rate in work per second); infinity without any.
    """
    rate = filled = 0.0
    surface = float("inf")
    for free, worker_rate in sorted(workers):
        if free >= surface:
            break
        rate += worker_rate
        filled += worker_rate * free
        surface = (work + filled) / rate
    return surface
