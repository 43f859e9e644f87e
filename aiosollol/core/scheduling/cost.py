"""Cost of a request on a node: seconds = overhead + seconds per token x tokens.

There is one `Cost` per (node, model), fitted by weighted least squares over the answers so far.
Each answer counts `FORGET` times as much as the next one. An answer's weight is
1 / (tokens + 100)^2: the relative error of a prediction matters, and a list of 400 texts must not
hide the overhead that a single text shows. The constant is there because for a few texts network
jitter dominates, which does not depend on their length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FORGET = 0.75
CHARACTERS_PER_TOKEN = 4.0
SPECIAL_TOKENS = 2
"""Tokens that a server adds to each text: a real server counts 2 for the empty text."""

GPU_SPEED_RATIO = 10.0
"""Assumed speed of a GPU node relative to a CPU node until it is measured."""

_CPU_SECONDS_PER_TOKEN = 1e-3
_PRIOR_OVERHEAD = 2e-3
_JITTER_TOKENS = 100.0
_PRIOR_WEIGHT = 0.05
_ENOUGH_SPREAD = 0.05
"""Variance of the sizes over their mean square that suffices to fit the overhead without the prior:
0.1 if half of the answers are twice the size of the others."""
_MIN_SECONDS_PER_TOKEN = 1e-6  # a million tokens a second is noise, not a real rate
_PLAUSIBLE_RATIOS = (0.3, 10.0)


class Cost:
    """The learned cost of a model on a node. Immutable: `observe` returns a new one.

    observations: answers seen.
    reach: largest answer seen in tokens, decaying; a prediction far beyond it is a guess.

    Answers come by the thousand a second and predictions are rarer, so the line is fitted lazily
    and cached.
    """

    __slots__ = ("_line", "_sums", "observations", "reach")

    def __init__(
        self,
        overhead: float = _PRIOR_OVERHEAD,
        seconds_per_token: float = _CPU_SECONDS_PER_TOKEN,
        observations: int = 0,
        reach: float = 0.0,
    ) -> None:
        self.observations = observations
        self.reach = reach
        self._line: tuple[float, float] | None = (overhead, seconds_per_token)
        # Decayed sums of w, w x, w y, w x^2 and w x y over the answers (x tokens, y seconds).
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    def __repr__(self) -> str:
        return (
            f"Cost({self.overhead:.3g} s + {self.seconds_per_token:.3g} s per token, "
            f"{self.observations} observations)"
        )

    @classmethod
    def unknown(cls, *, gpu: bool = False) -> Cost:
        """A guess for an unmeasured node. Only the ratio of GPU to CPU is meaningful."""
        return _UNKNOWN_GPU if gpu else _UNKNOWN_CPU

    @property
    def overhead(self) -> float:
        """Seconds per request."""
        return (self._line or self._fitted())[0]

    @property
    def seconds_per_token(self) -> float:
        """Seconds per prompt token."""
        return (self._line or self._fitted())[1]

    def seconds(self, tokens: float) -> float:
        """Predicted seconds for one request of `tokens`."""
        overhead, seconds_per_token = self._line or self._fitted()
        return overhead + seconds_per_token * tokens

    def observe(self, tokens: float, seconds: float) -> Cost:
        """The cost updated with an answer to `tokens` tokens that took the node `seconds`."""
        if seconds < 0.0:
            seconds = 0.0
        weight = 1.0 / (tokens + _JITTER_TOKENS) ** 2
        w, x, y, xx, xy = self._sums
        after = Cost.__new__(Cost)
        after.observations = self.observations + 1
        faded = FORGET * self.reach
        after.reach = tokens if tokens > faded else faded
        after._line = None
        weighted = weight * tokens
        after._sums = (
            FORGET * w + weight,
            FORGET * x + weighted,
            FORGET * y + weight * seconds,
            FORGET * xx + weighted * tokens,
            FORGET * xy + weighted * seconds,
        )
        return after

    def _fitted(self) -> tuple[float, float]:
        self._line = _fit(self._sums)
        return self._line


_UNKNOWN_CPU = Cost()
_UNKNOWN_GPU = Cost(seconds_per_token=_CPU_SECONDS_PER_TOKEN / GPU_SPEED_RATIO)


def _fit(sums: tuple[float, float, float, float, float]) -> tuple[float, float]:
    """Least squares line through the answers: (intercept, slope), neither negative.

    A weak prior point at zero tokens fixes the intercept while all answers have about one size.
    """
    w, x, y, xx, xy = sums
    spread = 1.0 - x * x / (w * xx) if w * xx else 0.0  # the product may underflow
    prior = _PRIOR_WEIGHT * w * max(0.0, 1.0 - spread / _ENOUGH_SPREAD)
    w, y = w + prior, y + prior * min(_PRIOR_OVERHEAD, y / w)
    determinant = w * xx - x * x
    slope = (w * xy - x * y) / determinant if determinant > 1e-12 * w * xx else 0.0
    slope = max(slope, _MIN_SECONDS_PER_TOKEN)
    intercept = (y - slope * x) / w
    if intercept < 0.0:
        return 0.0, max(xy / xx if xx else 0.0, _MIN_SECONDS_PER_TOKEN)
    return intercept, slope


@dataclass(frozen=True, slots=True)
class TokenRatio:
    """Characters per token of one model, corrected by the servers' token counts.

    Answers are weighted by length: a batch ends with its shortest texts, whose rounding to whole
    tokens must not affect the estimate for the others.
    """

    characters: float = CHARACTERS_PER_TOKEN
    observations: int = 0
    # Decaying sums of the characters sent and the tokens counted.
    _sums: tuple[float, float] = (0.0, 0.0)

    def tokens(self, text: str) -> float:
        """Estimated tokens of `text`, including the special ones."""
        return len(text) / self.characters + SPECIAL_TOKENS

    def tokens_each(self, texts: Sequence[str]) -> list[float]:
        """Estimated tokens of each of `texts`."""
        characters = self.characters
        return [len(text) / characters + SPECIAL_TOKENS for text in texts]

    def tokens_of(self, texts: Sequence[str]) -> float:
        """Estimated tokens of `texts` together."""
        return sum(map(len, texts)) / self.characters + SPECIAL_TOKENS * len(texts)

    def observe(self, characters: int, texts: int, tokens: int) -> TokenRatio:
        """The ratio updated with a count of `tokens` for `texts` texts of `characters` in total.

        An implausible ratio is ignored: a server that truncates a text to its context length
        counts only the tokens that remain.
        """
        counted = tokens - SPECIAL_TOKENS * texts
        if counted <= 0:
            return self
        if not _PLAUSIBLE_RATIOS[0] <= characters / counted <= _PLAUSIBLE_RATIOS[1]:
            return self
        # Forget as much as is learned, but at most 1 - FORGET of the known sums.
        known, seen = self._sums
        keep = max(FORGET, 1.0 - characters / known) if known else 0.0
        sums = (keep * known + characters, keep * seen + counted)
        return TokenRatio(sums[0] / sums[1], self.observations + 1, sums)


def earliest_finish(workers: Iterable[tuple[float, float]], work: float) -> float:
    """The smallest time T with ``sum(rate * max(0, T - free)) >= work``.

    workers: pairs (time at which it is free, rate in work per second). Infinity if there are none.
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
