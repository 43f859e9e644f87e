"""When the next batch begins, and of what; how long to wait after a failure. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from aiosollol.autobatch.rules import Rules

LOOK_SECONDS = 1.0
"""How often to look whether the pool is idle, and whether another process queued something."""

NODE_BACKOFF = (1.0, 30.0)
"""First and longest wait, in seconds, while no node can do anything."""

DOCUMENT_BACKOFF = (5.0, 300.0)
"""The same for a document that failed on nodes that do others."""

_RATE_WEIGHT = 0.2
_RETRY_AFTER = (1.0, 3600.0)


class Line(NamedTuple):
    """The documents of one group (model and settings) that wait, as far as matters here.

    group: its number. ready: how many could go now, counted up to a full batch.
    """

    group: int
    model: str
    ready: int


class Turn(NamedTuple):
    """What to do: a batch of `group` now, or, if that is None, nothing for `seconds`."""

    group: int | None
    seconds: float = 0.0


class BatchPacing:
    """Says when a batch begins. `now` is in seconds and never goes back.

    A group that was begun with is gone on with for `interval`, so that nodes need not load another
    model for every batch; then the others have their turn.
    """

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}  # since when documents wait, or the last batch began
        self._held: dict[int, float] = {}  # not before this
        self._failures: dict[int, tuple[tuple[float, float], int]] = {}
        self._current = 0  # the numbers of groups begin with 1
        self._current_since = 0.0

    def choose(
        self, lines: Sequence[Line], now: float, rules: Rules, is_idle: Callable[[str], bool]
    ) -> Turn:
        """The batch to begin now, or how long to wait. `is_idle` is asked per model."""
        groups = {line.group for line in lines}
        for gone in self._seen.keys() - groups:
            del self._seen[gone]
        waits: list[float] = []
        able: list[int] = []
        for line in lines:
            if not line.ready:
                continue
            since = self._seen.setdefault(line.group, now)
            held = self._held.get(line.group, 0.0) - now
            patience = since + rules.interval - now
            if held > 0.0:
                waits.append(held)
            elif patience <= 0.0 or (line.ready >= rules.min_batch_size and is_idle(line.model)):
                able.append(line.group)
            else:
                waits.append(patience)
        if able:
            return Turn(self._take_turns(able, now, rules.interval))
        return Turn(None, max(0.0, min([LOOK_SECONDS, *waits])))

    def _take_turns(self, able: Sequence[int], now: float, interval: float) -> int:
        chosen = self._current
        if chosen not in able or now - self._current_since >= interval:
            chosen = min((group for group in able if group > self._current), default=min(able))
            self._current_since = now
        self._current = chosen
        self._seen[chosen] = now
        return chosen

    def failed(self, group: int, now: float, backoff: tuple[float, float]) -> int:
        """No batch of `group` for a while; returns how many have failed in a row, and in this way.

        backoff: the first and the longest wait, in seconds.
        """
        way, count = self._failures.get(group, (backoff, 0))
        count = count + 1 if way == backoff else 1
        self._failures[group] = backoff, count
        self._held[group] = now + delay(count, backoff)
        return count

    def succeeded(self, group: int) -> None:
        self._held.pop(group, None)
        self._failures.pop(group, None)


def delay(failures: int, backoff: tuple[float, float]) -> float:
    """Seconds to wait after the last of `failures` in a row: doubled each time, up to a limit."""
    first, longest = backoff
    return min(longest, first * 2.0 ** min(failures - 1, 60))


def smoothed_rate(rate: float, documents: int, seconds: float) -> float:
    """Documents per second, after `documents` more were settled in `seconds`. 0 is unknown."""
    if seconds <= 0.0 or not documents:
        return rate
    latest = documents / seconds
    return latest if rate <= 0.0 else rate + _RATE_WEIGHT * (latest - rate)


def retry_after(excess: int, rate: float, interval: float) -> float:
    """Seconds until `excess` documents will have left the queue, which does `rate` per second.

    At least one second and at most an hour. Where the rate is unknown, one interval.
    """
    least, most = _RETRY_AFTER
    return min(most, max(least, excess / rate if rate > 0.0 else interval))
