"""The earliest time at which workers together are done, against a search for it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.scheduling.cost import earliest_finish

workers = st.lists(st.tuples(st.floats(0.0, 1e3), st.floats(1e-2, 1e3)), min_size=1, max_size=8)
work = st.floats(1e-3, 1e4)


def done_by(time: float, workers: list[tuple[float, float]]) -> float:
    return math.fsum(rate * max(0.0, time - free) for free, rate in workers)


def search(workers: list[tuple[float, float]], work: float) -> float:
    low, high = 0.0, max(free for free, _ in workers) + work / min(rate for _, rate in workers)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if done_by(middle, workers) >= work else (middle, high)
    return high


@settings(deadline=None)
@given(workers, work)
def test_it_is_what_a_search_finds(workers: list[tuple[float, float]], work: float) -> None:
    assert earliest_finish(workers, work) == pytest.approx(search(workers, work), rel=1e-9)


@settings(deadline=None)
@given(workers, work)
def test_then_the_work_is_just_done(workers: list[tuple[float, float]], work: float) -> None:
    finish = earliest_finish(workers, work)
    slack = 1e-9 * (1.0 + finish) * sum(rate for _, rate in workers)
    assert done_by(finish, workers) == pytest.approx(work, rel=1e-9, abs=slack)


@settings(deadline=None)
@given(workers, work, st.tuples(st.floats(0.0, 1e3), st.floats(1e-2, 1e3)))
def test_another_worker_or_less_work_never_makes_it_later(
    workers: list[tuple[float, float]], work: float, another: tuple[float, float]
) -> None:
    finish = earliest_finish(workers, work)
    assert earliest_finish([*workers, another], work) <= finish * (1 + 1e-12)
    assert earliest_finish(workers, work / 2) <= finish * (1 + 1e-12)


CASES = [
    pytest.param([], 1.0, math.inf, id="nobody"),
    pytest.param([(2.0, 4.0)], 8.0, 4.0, id="one"),
    pytest.param([(0.0, 1.0), (0.0, 3.0)], 8.0, 2.0, id="two share"),
    pytest.param([(0.0, 1.0), (9.0, 3.0)], 8.0, 8.0, id="who is free too late gets nothing"),
    pytest.param([(9.0, 3.0), (0.0, 1.0)], 8.0, 8.0, id="in any order"),
    pytest.param([(0.0, 1.0), (4.0, 1.0)], 8.0, 6.0, id="who is free later gets less"),
    pytest.param([(math.inf, 1.0), (1.0, 1.0)], 1.0, 2.0, id="who is never free"),
    pytest.param([(math.inf, 1.0)], 1.0, math.inf, id="nobody is ever free"),
    pytest.param([(3.0, 1.0), (5.0, 1.0)], 0.0, 3.0, id="nothing to do"),
]


@pytest.mark.parametrize(("workers", "work", "finish"), CASES)
def test_cases(workers: list[tuple[float, float]], work: float, finish: float) -> None:
    assert earliest_finish(workers, work) == finish
