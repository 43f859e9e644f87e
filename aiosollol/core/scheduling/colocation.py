"""Measure whether two nodes on one machine are faster together than the faster one alone.

With one Ollama per GPU they are. Two on one CPU are much slower (measured: 15 texts/s together, 49
alone), so it has to be measured: the second gets work while the first continues, and their combined
rate is compared with the rate of the first alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from aiosollol.core.scheduling.cost import Cost

ENOUGH_GAIN = 1.10
"""Both nodes are used if together they are at least this many times as fast as the first alone."""

TRIAL_CHUNK_SECONDS = 0.1
"""Chunk duration during a trial: small, so that the trial is short even if both are slow."""

_MIN_ANSWERS = 2
_MIN_OBSERVATIONS = 3
_MIN_SECONDS_LEFT = 2.0
"""A trial begins only with at least this much work left."""


class Finding(NamedTuple):
    """The result of a trial. Rates are tokens per second.

    first, second: names of the nodes.
    alone: rate of `first` alone.
    together: combined rate of both.
    """

    first: str
    second: str
    alone: float
    together: float

    @property
    def is_faster_together(self) -> bool:
        return self.together >= ENOUGH_GAIN * self.alone

    def __str__(self) -> str:
        times = self.together / self.alone if self.alone else 0.0
        verdict = "both work" if self.is_faster_together else f"only {self.first} works"
        return (
            f"{self.first} and {self.second} share a machine: "
            f"together {times:.2f} times as fast as the first alone, so {verdict}"
        )


@dataclass(slots=True)
class ColocationTrial:
    """A running measurement. Report each answer of either node to `answered`; see `finding`.

    alone: cost of the first node by itself, as known at `began`.
    """

    first: str
    second: str
    alone: Cost
    began: float
    _first_tokens: float = 0.0
    _first_seconds: float = 0.0
    _first_answers: int = 0
    _second_tokens: float = 0.0
    _second_seconds: float = 0.0
    _second_answers: int = 0
    _alone_seconds: float = 0.0

    def answered(self, node: str, tokens: float, worked_from: float, now: float) -> None:
        """Record an answer to a request of `tokens`, worked on from `worked_from` until now.

        Requests that the first node began before the trial are left out.
        """
        seconds = now - max(worked_from, self.began)
        if node == self.second:
            self._second_answers += 1
            self._second_tokens += tokens
            self._second_seconds += seconds
        elif node == self.first and worked_from >= self.began:
            self._first_answers += 1
            self._first_tokens += tokens
            self._first_seconds += seconds
            self._alone_seconds += self.alone.seconds(tokens)

    @property
    def finding(self) -> Finding | None:
        """The result; None until both nodes have answered often enough."""
        if min(self._first_answers, self._second_answers) < _MIN_ANSWERS:
            return None
        first = self._first_tokens / max(self._first_seconds, 1e-9)
        second = self._second_tokens / max(self._second_seconds, 1e-9)
        alone = self._first_tokens / max(self._alone_seconds, 1e-9)
        return Finding(self.first, self.second, alone, first + second)


class ColocationTrials:
    """The measurements of one batch, one after another.

    pairs: (first, second) nodes to measure.
    findings: the results so far.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = deque(pairs)
        self._current: ColocationTrial | None = None
        self.findings: list[Finding] = []

    def waits_beside(self, first: str) -> bool:
        """Whether the next trial pairs a node with `first`."""
        return bool(self._pairs) and self._pairs[0][0] == first and self._current is None

    @staticmethod
    def pays(cost: Cost, seconds_left: float) -> bool:
        """Whether the first node is measured well enough and enough work is left."""
        return cost.observations >= _MIN_OBSERVATIONS and seconds_left >= _MIN_SECONDS_LEFT

    def concerns(self, node: str) -> bool:
        """Whether `node` is being measured now."""
        trial = self._current
        return trial is not None and node in (trial.first, trial.second)

    def begin(self, alone: Cost, now: float) -> str:
        """Begin the next measurement. Returns the name of the second node, which now gets work."""
        first, second = self._pairs.popleft()
        self._current = ColocationTrial(first, second, alone, now)
        return second

    def drop(self) -> None:
        """Abort the current measurement because one of the two nodes was lost."""
        self._current = None

    def answered(self, node: str, tokens: float, worked_from: float, now: float) -> Finding | None:
        """Record an answer. Returns the result if it completes the measurement."""
        if self._current is None:
            return None
        self._current.answered(node, tokens, worked_from, now)
        finding = self._current.finding
        if finding is not None:
            self.findings.append(finding)
            self._current = None
        return finding
