"""Token counts of a batch, as reported by the nodes, each item once even if several computed it.

An answer has one count for all its items. If two answers overlap, because a late chunk was copied,
the first count is subtracted from the second if the second contains all items of the first, the
usual case; otherwise the second is divided in proportion to the estimates. An item for several
equal texts counts once for each text: `WorkQueue` puts only items with the same number of repeats
into one chunk, so the chunk's count is multiplied.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from aiosollol.core.scheduling.cost import CHARACTERS_PER_TOKEN, SPECIAL_TOKENS


class Answer(NamedTuple):
    """Items that a node answered first. is_counted: whether it reported `tokens`."""

    node: str
    items: Sequence[int]
    tokens: float
    is_counted: bool


class TokenCounts:
    """The counts of one batch.

    estimated: estimated tokens of each item, for items without a count.
    times: number of equal texts per item, if more than one.
    is_exact: whether nothing was estimated so far.
    answers: in the order of arrival.
    """

    def __init__(self, estimated: Sequence[float], times: Mapping[int, int] | None = None) -> None:
        self._estimated = estimated
        self._times = times or {}
        self._is_counted = bytearray(len(estimated))
        self.answers: list[Answer] = []
        self._by_node: dict[str, float] = {}
        self._total = 0.0
        self.is_exact = True

    @property
    def total(self) -> int:
        """Tokens of all answered texts, duplicates included."""
        return round(self._total)

    def of(self, node: str) -> int:
        """Tokens of the items that `node` answered first."""
        return round(self._by_node.get(node, 0.0))

    def answered(self, node: str, items: Sequence[int], tokens: int) -> None:
        """Record that `node` reported `tokens` for `items`; 0 if it reported none."""
        is_counted = self._is_counted
        new = [item for item in items if not is_counted[item]]
        if not new:
            return
        counted: float = tokens
        if tokens <= 0:
            counted = self._estimate(new)
            self.is_exact = False
        elif len(new) < len(items):
            counted = self._rest(items, new, tokens)
        for item in new:
            is_counted[item] = 1
        self.answers.append(Answer(node, new, counted, tokens > 0))
        self._by_node[node] = self._by_node.get(node, 0.0) + counted
        self._total += self._repeated(new, counted)

    def _rest(self, items: Sequence[int], new: Sequence[int], tokens: float) -> float:
        """The part of `tokens` that belongs to the `new` ones of `items`."""
        known = set(items).difference(new)
        for answer in self.answers:
            if known.issuperset(answer.items):
                known.difference_update(answer.items)
                tokens -= answer.tokens
        if known:
            self.is_exact = False
            mine = self._estimate(new)
            tokens *= mine / (mine + self._estimate(known) or 1.0)
        return max(tokens, 0.0)

    def _repeated(self, items: Sequence[int], tokens: float) -> float:
        """`tokens` of `items`, multiplied for items that stand for several texts."""
        if not self._times:
            return tokens
        times = {self._times.get(item, 1) for item in items}
        if len(times) == 1:
            return times.pop() * tokens
        self.is_exact = False
        estimated = self._estimated
        weighted = sum(estimated[item] * self._times.get(item, 1) for item in items)
        return tokens * weighted / (self._estimate(items) or 1.0)

    def _estimate(self, items: Sequence[int] | set[int]) -> float:
        return sum(map(self._estimated.__getitem__, items))


_WORDS = (string.ascii_letters + string.whitespace).encode()
_NO_MARKS = _WORDS + string.digits.encode() + bytes(range(128, 256))
_NO_DIGITS = bytes(set(range(256)).difference(string.digits.encode()))


def weight(text: str) -> float:
    """The estimated tokens of `text`, to compare it with others in one list.

    One token for every four letters or spaces, for every punctuation mark, and for every two
    digits. A character outside ASCII is often a token of its own, as in Japanese: it adds one for
    every two bytes beyond its first.
    """
    data = text.encode("utf-8", "replace")
    wide = (len(data) - len(text)) / 2
    marks = len(data.translate(None, _NO_MARKS))
    digits = len(data.translate(None, _NO_DIGITS))
    letters = max(0.0, len(text) - wide - marks - digits)
    return letters / CHARACTERS_PER_TOKEN + marks + digits / 2 + wide + SPECIAL_TOKENS


def shares(tokens: int, weights: Sequence[float]) -> list[int]:
    """`tokens` divided in proportion to `weights`, in whole numbers whose sum is `tokens`."""
    sums = list(accumulate(weights))
    if not sums or sums[-1] <= 0.0:
        return [0] * len(weights)
    bounds = [round(tokens * each / sums[-1]) for each in sums]
    return [bound - before for before, bound in zip([0, *bounds], bounds, strict=False)]
