"""`BatchPacing`: when the next batch begins and of which group; waits after failures. Pure."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from aiosollol.core.offload.engine_choice import EngineName, check_engine
from aiosollol.errors import InvalidInput

LOOK_SECONDS = 1.0
"""Interval of checks whether the pool is idle, and whether another process queued documents."""

NODE_BACKOFF = (1.0, 30.0)
"""First and longest wait, in seconds, while no node can embed."""

DOCUMENT_BACKOFF = (5.0, 300.0)
"""The same for a document that failed on nodes that embed others."""

_RATE_WEIGHT = 0.2
_RETRY_AFTER = (1.0, 3600.0)


class Line(NamedTuple):
    """The queued documents of one group (model and settings).

    group: its number.
    ready: documents that could be embedded now, counted up to a full batch.
    """

    group: int
    model: str
    ready: int


class Turn(NamedTuple):
    """The next action: a batch of `group` now, or if it is None, nothing for `seconds`."""

    group: int | None
    seconds: float = 0.0


class BatchPacing:
    """Decides when a batch begins. `now` is in seconds and monotonic.

    It stays with one group for `interval`, so that nodes need not load another model for every
    batch; then it switches to the next.
    """

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}  # the time since documents wait, or of the last batch
        self._held: dict[int, float] = {}  # no batch before this time
        self._failures: dict[int, tuple[tuple[float, float], int]] = {}
        self._current = 0  # the numbers of groups begin with 1
        self._current_since = 0.0

    def choose(
        self, lines: Sequence[Line], now: float, rules: Rules, is_idle: Callable[[str], bool]
    ) -> Turn:
        """The batch to begin now, or the time to wait. is_idle: whether a model's node is idle."""
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
        """Hold `group` back for a while; returns its consecutive failures with this `backoff`.

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
    """Seconds to wait after `failures` in a row: doubled each time, up to a limit."""
    first, longest = backoff
    return min(longest, first * 2.0 ** min(failures - 1, 60))


def smoothed_rate(rate: float, documents: int, seconds: float) -> float:
    """Documents per second, after `documents` more were settled in `seconds`; 0 if unknown."""
    if seconds <= 0.0 or not documents:
        return rate
    latest = documents / seconds
    return latest if rate <= 0.0 else rate + _RATE_WEIGHT * (latest - rate)


def retry_after(excess: int, rate: float, interval: float) -> float:
    """Estimated seconds until `excess` documents have left the queue, at `rate` per second.

    At least one second and at most an hour. If the rate is unknown, one interval.
    """
    least, most = _RETRY_AFTER
    return min(most, max(least, excess / rate if rate > 0.0 else interval))


DAY = 86_400.0
GIB = 1 << 30
OWNER_DOCUMENTS, OWNER_BYTES, OWNER_JOBS = 250_000, 256 << 20, 10_000
"""Defaults of an owner's quotas: a quarter of the queue, so that one owner cannot fill it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings of a queue. Times are seconds.

    interval: between batches while no node is idle; also the longest wait of documents for others
        to fill a batch.
    min_batch_size: fewer documents wait for others, even in an idle pool.
    max_batch_size: the most documents in a batch.
    keep_results: how long a job is kept after its end.
    max_documents, max_bytes: limits of the queue over all jobs; bytes of the texts in UTF-8.
    owner_documents, owner_bytes: the same for the jobs of one owner.
    owner_jobs: the most jobs of one owner that are kept, finished ones included.
    max_attempts: attempts for a document that fails for another reason than its text.
    engine: where to compute, see `OllamaPool.embed_batch`; in this process while it is unavailable.

    The first three defaults are the original's. Raises InvalidInput.
    """

    interval: float = 60.0
    min_batch_size: int = 1
    max_batch_size: int = 100
    keep_results: float = DAY
    max_documents: int = 1_000_000
    max_bytes: int = GIB
    owner_documents: int = OWNER_DOCUMENTS
    owner_bytes: int = OWNER_BYTES
    owner_jobs: int = OWNER_JOBS
    max_attempts: int = 5
    engine: EngineName = "auto"

    def __post_init__(self) -> None:
        check_engine(self.engine)
        for name in ("interval", "keep_results"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0.0 <= value < math.inf:
                raise InvalidInput(f"{name} must be a number of seconds, not {value!r}")
        for name in (
            "min_batch_size",
            "max_batch_size",
            "max_documents",
            "max_bytes",
            "owner_documents",
            "owner_bytes",
            "owner_jobs",
            "max_attempts",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInput(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.min_batch_size > self.max_batch_size:
            raise InvalidInput(
                f"min_batch_size is {self.min_batch_size}, "
                f"more than max_batch_size, {self.max_batch_size}"
            )


class Clock(Protocol):
    """The clock of a queue, in seconds."""

    def now(self) -> float:
        """Seconds since the epoch, for stored times."""
        ...

    def monotonic(self) -> float:
        """A monotonic time in seconds, to measure waits."""
        ...

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Wait until `event` is set, for at most `seconds`."""
        ...


class SystemClock:
    """The system's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
