"""Whether two nodes on one machine are faster together than the faster one alone.

One Ollama per GPU in one box: they are. Two on one CPU: they are not, by far (two real ones gave 15
texts/s together where one gave 49). Only a measurement tells: the second gets work while the first
goes on, and their rates together are compared with the rate of the first alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from aiosollol.core.scheduling.cost import Cost

ENOUGH_GAIN = 1.10
"""How many times as fast as the first alone both must be, so that it is worth to use both."""

TRIAL_CHUNK_SECONDS = 0.1
"""Both work in small chunks for the while, so that it is short even if they are slow together."""

_MIN_ANSWERS = 2
_MIN_OBSERVATIONS = 3
_MIN_SECONDS_LEFT = 2.0
"""How much work must be left so that it pays to find out."""


class Finding(NamedTuple):
    """What was measured. Rates are tokens per second.

    first, second: names of the nodes. alone: rate of `first` alone. together: of both at once.
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
    """A measurement under way. Tell it of every answer of either node; ask for the `finding`.

    alone: what the first costs by itself, as known when the trial begins at `began`.
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
        """A node answered a request of `tokens` that it worked on from `worked_from` until now.

        What the first began before the trial tells nothing and is left out.
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
        """The result, once both have answered often enough; None before."""
        if min(self._first_answers, self._second_answers) < _MIN_ANSWERS:
            return None
        first = self._first_tokens / max(self._first_seconds, 1e-9)
        second = self._second_tokens / max(self._second_seconds, 1e-9)
        alone = self._first_tokens / max(self._alone_seconds, 1e-9)
        return Finding(self.first, self.second, alone, first + second)


class ColocationTrials:
    """The measurements of one batch, one after another.

    pairs: (first, second) nodes to be measured. findings: the results so far.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = deque(pairs)
        self._current: ColocationTrial | None = None
        self.findings: list[Finding] = []

    def waits_beside(self, first: str) -> bool:
        """Whether a node waits to be tried beside `first`."""
        return bool(self._pairs) and self._pairs[0][0] == first and self._current is None

    @staticmethod
    def pays(cost: Cost, seconds_left: float) -> bool:
        """Whether enough is known of the first and enough is left to do."""
        return cost.observations >= _MIN_OBSERVATIONS and seconds_left >= _MIN_SECONDS_LEFT

    def concerns(self, node: str) -> bool:
        """Whether `node` is being measured now."""
        trial = self._current
        return trial is not None and node in (trial.first, trial.second)

    def begin(self, alone: Cost, now: float) -> str:
        """Begin the next measurement. Returns the name of the node that is to work as well."""
        first, second = self._pairs.popleft()
        self._current = ColocationTrial(first, second, alone, now)
        return second

    def drop(self) -> None:
        """Give up the measurement under way: one of the two is gone."""
        self._current = None

    def answered(self, node: str, tokens: float, worked_from: float, now: float) -> Finding | None:
        """Tell of an answer. Returns the result if the measurement is complete with it."""
        if self._current is None:
            return None
        self._current.answered(node, tokens, worked_from, now)
        finding = self._current.finding
        if finding is not None:
            self.findings.append(finding)
            self._current = None
        return finding
