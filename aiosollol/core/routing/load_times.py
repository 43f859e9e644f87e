"""Seconds of model loads: those seen, and estimates from them for other nodes and models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

LEAST_LOAD = 0.1
"""Seconds of `load_duration` from which a server had to load the model. It reports some for every
answer, because it reads the model's metadata again: 0.6 to 49 ms in tests/captures."""

HUNG_LOADS = 3.0
"""A load that takes this multiple of the longest one that was seen hangs."""

_GUESS = 5.0  # seconds, until any load was seen
_SMOOTHING = 0.5


class LoadTimes:
    """The load times of all nodes and models of a cluster.

    A load that was not yet seen is estimated from those most like it: other models on that node,
    else the same model on other nodes, else any. Seconds are proportional to the model's size, as
    weights are read from disk; a size of 0 is unknown, and then they are taken as they are.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[int, float]] = {}
        self._estimates: dict[tuple[str, str, int], float] = {}

    def observe(self, node: str, model: str, size: int, seconds: float) -> None:
        """Record a load of `model`, by full name, of `size` bytes."""
        known = self._seen.get((node, model))
        if known is not None:
            seconds = known[1] + _SMOOTHING * (seconds - known[1])
        self._seen[node, model] = size, seconds
        self._estimates.clear()

    def seconds(self, node: str, model: str, size: int) -> float:
        """Seconds of a load, as seen or estimated."""
        seen = self._seen.get((node, model))
        if seen is not None:
            return seen[1]
        key = node, model, size
        if key not in self._estimates:
            self._estimates[key] = self._estimate(node, model, size)
        return self._estimates[key]

    def known(self, model: str, size: int) -> float | None:
        """The longest load of `model` that was seen on any node; None if none was."""
        seen = [load for key, load in self._seen.items() if key[1] == model]
        return max(_scaled(seen, size), default=None)

    def _estimate(self, node: str, model: str, size: int) -> float:
        seen = self._seen
        for like in (
            [load for key, load in seen.items() if key[0] == node],
            [load for key, load in seen.items() if key[1] == model],
            list(seen.values()),
        ):
            if like:
                return median(_scaled(like, size))
        return _GUESS


def _scaled(loads: Iterable[tuple[int, float]], size: int) -> Iterator[float]:
    for known, seconds in loads:
        yield seconds * size / known if size and known else seconds
