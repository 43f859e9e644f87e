"""Lengths of answers of one model, as a distribution: of a new one, and of what is left of one."""

from __future__ import annotations

from math import log2

_PER_OCTAVE = 4
_BUCKETS = _PER_OCTAVE * 20  # up to a million tokens
_FADE = 1.01  # each answer counts 1 % more than the one before
_LARGEST_WEIGHT = 1e9
_GUESS = 200.0  # tokens, until an answer was seen


class OutputLengths:
    """A histogram of tokens of answers, in buckets of a quarter of an octave. Old ones fade.

    observations: answers seen.
    """

    __slots__ = ("_counts", "_longest", "_sums", "_tail", "_weight", "observations")

    def __init__(self) -> None:
        self.observations = 0
        self._weight = 1.0
        self._counts = [0.0] * _BUCKETS
        self._sums = [0.0] * _BUCKETS
        # Count and sum of the answers in and above each bucket; None while outdated.
        self._tail: list[tuple[float, float]] | None = None
        self._longest = 0.0  # mean of the highest bucket in use

    def observe(self, tokens: float) -> None:
        """Record an answer of `tokens`."""
        self.observations += 1
        self._weight *= _FADE
        if self._weight > _LARGEST_WEIGHT:
            self._counts = [count / self._weight for count in self._counts]
            self._sums = [total / self._weight for total in self._sums]
            self._weight = 1.0
        bucket = _bucket(tokens)
        self._counts[bucket] += self._weight
        self._sums[bucket] += self._weight * tokens
        self._tail = None

    def expected(self, most: float = 0.0) -> float:
        """Expected tokens of a new answer. most: its limit (``num_predict``), 0 for none."""
        if not self.observations:
            return min(_GUESS, most) if most else _GUESS
        tail = self._tail or self._tails()
        count, total = tail[0]
        if most:
            above, above_total = tail[_bucket(most)]
            total += min(0.0, most * above - above_total)
        return total / count

    def left(self, produced: float, most: float = 0.0) -> float:
        """Expected further tokens of an answer that has `produced` some.

        One that is longer than all before by some tokens is expected to need as many again.
        """
        if not self.observations:
            left = max(_GUESS - produced, produced)
        else:
            above = _bucket(produced) + 1
            tail = self._tail or self._tails()
            count, total = tail[above] if above < _BUCKETS else (0.0, 0.0)
            left = total / count - produced if count else abs(self._longest - produced)
        return max(0.0, min(left, most - produced)) if most else left

    def _tails(self) -> list[tuple[float, float]]:
        tails = []
        count = total = self._longest = 0.0
        for bucket in range(_BUCKETS - 1, -1, -1):
            count += self._counts[bucket]
            total += self._sums[bucket]
            tails.append((count, total))
            if count and not self._longest:
                self._longest = total / count
        self._tail = tails[::-1]
        return self._tail


def _bucket(tokens: float) -> int:
    return min(_BUCKETS - 1, int(_PER_OCTAVE * log2(tokens + 1.0))) if tokens > 0.0 else 0
