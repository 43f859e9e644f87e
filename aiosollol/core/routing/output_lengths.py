"""Lengths of answers of one model, as distributions: of a new one, and of what is left of one.

There is one distribution for each order of magnitude of the limit in the request (``num_predict``),
because requests with different limits are mostly those of different applications.
"""

from __future__ import annotations

from math import log2

_PER_OCTAVE = 4
_BUCKETS = _PER_OCTAVE * 20  # up to a million tokens
_FADE = 1.01  # each answer counts 1 % more than the one before
_LARGEST_WEIGHT = 1e9
_REFRESH_EVERY = 16  # answers
_GUESS = 200.0  # tokens, until an answer was seen
_ENOUGH = 3  # answers to requests with such a limit, before they count instead of all answers


class OutputLengths:
    """A histogram of tokens of answers, in buckets of a quarter of an octave. Old ones fade.

    observations: answers seen.
    """

    __slots__ = (
        "_counts",
        "_expected",
        "_longest",
        "_refresh_at",
        "_sums",
        "_tail",
        "_weight",
        "observations",
    )

    def __init__(self) -> None:
        self.observations = 0
        self._weight = 1.0
        self._counts = [0.0] * _BUCKETS
        self._sums = [0.0] * _BUCKETS
        # Count and sum of the answers in and above each bucket; None while outdated.
        self._tail: list[tuple[float, float]] | None = None
        self._longest = 0.0  # mean of the highest bucket in use
        self._refresh_at = 1
        self._expected: dict[float, float] = {}  # by limit

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
        if self.observations >= self._refresh_at:
            self._tail = None

    def expected(self, most: float = 0.0) -> float:
        """Expected tokens of a new answer. most: its limit (``num_predict``), 0 for none."""
        if not self.observations:
            return min(_GUESS, most) if most else _GUESS
        tail = self._tail or self._tails()
        expected = self._expected.get(most)
        if expected is None:
            count, total = tail[0]
            if most:
                above, above_total = tail[_bucket(most)]
                total += min(0.0, most * above - above_total)
            expected = total / count
            if len(self._expected) < _BUCKETS:
                self._expected[most] = expected
        return expected

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
        self._expected.clear()
        # One more answer of many changes little.
        self._refresh_at = self.observations + min(_REFRESH_EVERY, 1 + self.observations // 8)
        return self._tail


class LengthsByLimit:
    """The lengths of answers of one model and kind of request, by the limits in the requests.

    answers: how many were seen.
    """

    __slots__ = ("_all", "_by_limit", "answers")

    def __init__(self) -> None:
        self.answers = 0
        self._all = OutputLengths()
        self._by_limit: dict[int, OutputLengths] = {}

    def observe(self, tokens: float, most: int) -> None:
        """Record an answer of `tokens` to a request with the limit `most`, 0 if it had none."""
        self.answers += 1
        self._all.observe(tokens)
        self._by_limit.setdefault(most.bit_length(), OutputLengths()).observe(tokens)

    def of(self, most: int) -> OutputLengths:
        """The distribution for a request with the limit `most`."""
        known = self._by_limit.get(most.bit_length())
        return self._all if known is None or known.observations < _ENOUGH else known


def _bucket(tokens: float) -> int:
    return min(_BUCKETS - 1, int(_PER_OCTAVE * log2(tokens + 1.0))) if tokens > 0.0 else 0
