"""The queue of a batch against a model of it: nothing is lost, nothing is handed out twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiosollol.core.scheduling.work_queue import WorkQueue

INFINITY = float("inf")
NODES = ["a", "b"]
# Quarters add up exactly, so sums can be compared without a tolerance.
sizes = st.integers(8, 400).map(lambda quarters: quarters / 4)


class Batch(RuleBasedStateMachine):
    """Takes and returns at random. The model: each item is fresh, returned, out or settled."""

    @initialize(tokens=st.lists(sizes, max_size=30))
    def start(self, tokens: list[float]) -> None:
        self.tokens = tokens
        self.queue = WorkQueue(tokens)
        self.fresh = sorted(range(len(tokens)), key=lambda item: -tokens[item])
        self.returned: list[tuple[list[int], str | None]] = []
        self.out: list[list[int]] = []

    @rule(
        node=st.sampled_from(NODES),
        tokens=st.floats(0.0, 300.0),
        count=st.integers(1, 8),
        shortest=st.booleans(),
    )
    def take(self, node: str, tokens: float, count: int, shortest: bool) -> None:
        longest, least = self.queue.longest(node), self.queue.shortest(node)
        taken, total = self.queue.take(node, tokens, count, shortest=shortest)
        items = list(taken)
        source = self._source(node, shortest)
        if source is None:
            assert (items, total, longest, least) == ([], 0.0, INFINITY, INFINITY)
            return
        assert 1 <= len(items) <= count
        assert total == self._sum(items)
        assert len(items) == 1 or total <= tokens + 1e-6
        if shortest and source is self.fresh:
            assert items == source[-len(items) :]
            assert self.tokens[items[-1]] == least
            left = source[: -len(items)][::-1]
        else:
            assert items == source[: len(items)]
            assert self.tokens[items[0]] == (least if shortest else longest)
            left = source[len(items) :]
        if left and len(items) < count:  # one more would have been too much
            assert total + self.tokens[left[0]] > tokens - 1e-6
        self._remove(source, items)
        self.out.append(items)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), avoid=st.sets(st.sampled_from(NODES)))
    def put_back(self, data: st.DataObject, avoid: set[str]) -> None:
        items = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.queue.put_back(items, avoid=avoid)
        self.returned.append((items, avoid))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))

    @precondition(lambda self: self.returned)
    @rule(settled=st.sets(st.integers(0, 29)))
    def discard(self, settled: set[int]) -> None:
        self.queue.discard(settled.__contains__)
        left = [([i for i in items if i not in settled], avoid) for items, avoid in self.returned]
        self.returned = [(items, avoid) for items, avoid in left if items]

    @rule(able=st.sets(st.sampled_from(NODES)))
    def forget_culprits(self, able: set[str]) -> None:
        self.queue.forget_culprits(able)
        self.returned = [
            (items, set() if able <= avoid else avoid) for items, avoid in self.returned
        ]

    @rule()
    def drain(self) -> None:
        assert sorted(self.queue.drain()) == sorted(self._waiting())
        self.fresh, self.returned = [], []

    @invariant()
    def knows_what_is_waiting(self) -> None:
        assert self.queue.tokens == self._sum(self._waiting())
        assert bool(self.queue) is bool(self._waiting())

    def _source(self, node: str, shortest: bool) -> list[int] | None:
        """What `node` should be given from: returned items first, all of one piece."""
        if not (shortest and self.fresh):
            for items, avoid in self.returned:
                if node not in avoid:
                    return items
        return self.fresh or None

    def _remove(self, source: list[int], items: list[int]) -> None:
        left = [item for item in source if item not in items]
        if source is self.fresh:
            self.fresh = left
            return
        at = next(at for at, (piece, _) in enumerate(self.returned) if piece is source)
        _, avoid = self.returned.pop(at)
        if left:
            self.returned.insert(0, (left, avoid))

    def _waiting(self) -> list[int]:
        return [*self.fresh, *(item for items, _ in self.returned for item in items)]

    def _sum(self, items: Sequence[int]) -> float:
        return sum(self.tokens[item] for item in items)


TestBatch = Batch.TestCase
TestBatch.settings = settings(deadline=None, max_examples=150, stateful_step_count=30)


@settings(deadline=None)
@given(st.lists(sizes, max_size=60), st.floats(1.0, 500.0), st.integers(1, 10))
def test_taken_from_the_front_items_come_longest_first(
    tokens: list[float], most: float, count: int
) -> None:
    queue = WorkQueue(tokens)
    order: list[int] = []
    while queue:
        order.extend(queue.take("a", most, count)[0])
    assert order == sorted(range(len(tokens)), key=lambda item: -tokens[item])
    assert queue.tokens == 0.0


@settings(deadline=None)
@given(
    st.lists(st.tuples(sizes, st.integers(1, 3)), max_size=60),
    st.floats(1.0, 500.0),
    st.integers(1, 10),
    st.data(),
)
def test_items_that_repeat_equally_often_are_taken_together_the_others_last(
    entries: list[tuple[float, int]], most: float, count: int, data: st.DataObject
) -> None:
    times = {item: each for item, (_, each) in enumerate(entries) if each > 1}
    queue = WorkQueue([size for size, _ in entries], times)
    front: list[int] = []
    back: list[int] = []
    while queue:
        shortest = data.draw(st.booleans())
        items = list(queue.take("a", most, count, shortest=shortest)[0])
        assert len({times.get(item, 1) for item in items}) == 1
        if shortest:
            back = items + back
        else:
            front += items
    order = range(len(entries))
    assert front + back == sorted(order, key=lambda item: (-entries[item][1], -entries[item][0]))


TAKES = [
    pytest.param(100.0, 10, False, [1, 0, 2], id="all that fits"),
    pytest.param(60.0, 10, False, [1, 0], id="as many tokens as asked for"),
    pytest.param(59.0, 10, False, [1], id="not one token more"),
    pytest.param(100.0, 2, False, [1, 0], id="as many items as asked for"),
    pytest.param(0.0, 1, False, [1], id="one at least"),
    pytest.param(30.0, 10, True, [0, 2], id="from the short end"),
    pytest.param(100.0, 1, True, [2], id="one from the short end"),
    pytest.param(0.0, 5, True, [2], id="one at least from the short end"),
]


@pytest.mark.parametrize(("tokens", "count", "shortest", "expected"), TAKES)
def test_how_much_is_taken(tokens: float, count: int, shortest: bool, expected: list[int]) -> None:
    queue = WorkQueue([20.0, 40.0, 10.0])
    items, total = queue.take("a", tokens, count, shortest=shortest)
    assert list(items) == expected
    assert total == sum([20.0, 40.0, 10.0][item] for item in expected)


def test_equal_lengths_stay_in_input_order() -> None:
    assert list(WorkQueue([5.0] * 4).take("a", 15.0, 9)[0]) == [0, 1, 2]


@pytest.fixture
def returned() -> WorkQueue:
    """Three items, of which the longest came back from node "a"."""
    queue = WorkQueue([30.0, 20.0, 10.0])
    queue.put_back(queue.take("a", 30.0, 1)[0], avoid={"a"})
    return queue


def test_what_came_back_goes_first_and_to_another_node(returned: WorkQueue) -> None:
    assert (returned.longest("a"), returned.longest("b")) == (20.0, 30.0)
    assert list(returned.take("b", 100.0, 9)[0]) == [0]  # not mixed with others
    assert list(returned.take("b", 100.0, 9)[0]) == [1, 2]


def test_who_failed_it_does_not_get_it_back(returned: WorkQueue) -> None:
    assert list(returned.take("a", 100.0, 9)[0]) == [1, 2]
    assert (list(returned.take("a", 100.0, 9)[0]), returned.tokens) == ([], 30.0)
    assert returned.longest("a") == returned.shortest("a") == INFINITY


def test_unless_there_is_nobody_else(returned: WorkQueue) -> None:
    returned.forget_culprits()
    assert list(returned.take("a", 100.0, 9)[0]) == [0]


SETTLED: list[tuple[Callable[[int], bool], float]] = [
    (lambda item: item == 0, 30.0),
    (lambda item: item != 0, 60.0),
]


@pytest.mark.parametrize(("is_settled", "left"), SETTLED, ids=["the one", "the others"])
def test_a_returned_item_that_was_settled_meanwhile_is_forgotten(
    returned: WorkQueue, is_settled: Callable[[int], bool], left: float
) -> None:
    returned.discard(is_settled)
    assert returned.tokens == left
