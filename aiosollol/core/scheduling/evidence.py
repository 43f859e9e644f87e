"""What the failures and successes of a batch say about its items and its nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence

from aiosollol.core.blame import Refusal, Verdict, judge
from aiosollol.errors import SollolError

_NEVER = -1


MAX_FAILURES = 64
"""Failed requests that are remembered for whether other nodes answer all of their items."""


class Evidence:
    """Failures by item and by node, and when each node last answered.

    held: items that no working node may get, until a node answers, fails again or joins.
    """

    def __init__(self) -> None:
        self._culprits: dict[int, set[str]] = {}
        self._unanswered: deque[tuple[str, set[int]]] = deque(maxlen=MAX_FAILURES)
        self._refusals: dict[int, dict[str, Refusal]] = {}
        # Events are counted, because several may happen at one time of the clock.
        self._turn = 0
        self._last_success: dict[str, int] = {}
        self._failed_check: dict[str, int] = {}
        self.held: list[int] = []

    @property
    def has_answers(self) -> bool:
        """Whether any node has answered."""
        return bool(self._last_success)

    def answered(self, items: Sequence[int], node: str) -> list[str]:
        """Record an answer of `node`. Returns the nodes that this proves wrong.

        A node was wrong about a request if other nodes have answered every item of it.
        """
        self._turn += 1
        if self.needs_recovery(node):
            self._void_refusals(node)
        self._last_success[node] = self._turn
        if not self._culprits:
            return []
        for item in items:
            self._culprits.pop(item, None)
            self._refusals.pop(item, None)
        wrong = []
        for failure in list(self._unanswered):
            culprit, left = failure
            if left.isdisjoint(items):
                continue
            left.difference_update(items)
            if culprit == node or not left:
                self._unanswered.remove(failure)
                if culprit != node:
                    wrong.append(culprit)
        return wrong

    def failed_check(self, node: str) -> None:
        """Record that `node` failed a text that cannot be at fault."""
        self._turn += 1
        self._failed_check[node] = self._turn

    def needs_recovery(self, node: str) -> bool:
        """Whether `node` failed a check and has not answered since."""
        return self._failed_check.get(node, _NEVER) > self._last_success.get(node, _NEVER)

    def _void_refusals(self, node: str) -> None:
        """Forget what `node` refused while it failed checks too."""
        since = self._last_success.get(node, _NEVER)
        for refusals in self._refusals.values():
            if node in refusals and refusals[node].at > since:
                del refusals[node]

    def gave_up(self, item: int) -> None:
        """Record that `item` is at fault: so the nodes that failed it were right."""
        for failure in list(self._unanswered):
            if item in failure[1]:
                self._unanswered.remove(failure)

    def failed(
        self, items: Sequence[int], node: str, error: SollolError, *, is_alone: bool
    ) -> None:
        """Record that `node` failed a request with `items`.

        is_alone: whether the request had nothing but one item.
        """
        self._turn += 1
        for item in items:
            self._culprits.setdefault(item, set()).add(node)
        self._unanswered.append((node, set(items)))
        if is_alone:
            refusals = self._refusals.setdefault(items[0], {})
            if node in refusals:
                before = self._last_success.get(node, _NEVER)
                refusals[node] = refusals[node].again(error, self._turn, before)
            else:
                refusals[node] = Refusal(error, self._turn)

    def is_suspect(self, item: int) -> bool:
        """Whether an item failed alone."""
        return item in self._refusals

    def culprits(self, items: Iterable[int]) -> set[str]:
        """The nodes that failed a request with any of `items`."""
        return set().union(*(self._culprits.get(item, ()) for item in items))

    def judge(self, item: int, able: Collection[str], absent: Collection[str]) -> Verdict:
        """The verdict on an item that failed alone. able, absent: see `core.blame.judge`."""
        return judge(self._refusals.get(item, {}), able, self._last_success, absent)

    def error_of(self, item: int) -> SollolError:
        """The latest failure of an item that failed alone."""
        return max(self._refusals[item].values(), key=lambda refusal: refusal.at).error

    def needs_proof(self, node: str) -> bool:
        """Whether a held item waits for `node` to answer other work."""
        last = self._last_success.get(node, _NEVER)
        return any(
            node in self._refusals[item] and last <= self._refusals[item][node].at
            for item in self.held
        )
