"""Two nodes on one machine: are they faster together?"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.scheduling.colocation import ENOUGH_GAIN, ColocationTrial, Finding
from aiosollol.core.scheduling.cost import Cost

ALONE = Cost(0.0, 0.01, observations=5)  # 100 tokens a second


def measured(first: float, second: float, answers: int = 2) -> ColocationTrial:
    """A trial in which the two did so many tokens per second at the same time, from 10 on."""
    trial = ColocationTrial("a", "b", ALONE, began=10.0)
    for index in range(answers):
        trial.answered("a", first, 10.0 + index, 11.0 + index)
        trial.answered("b", second, 10.0 + index, 11.0 + index)
    return trial


@pytest.mark.parametrize(
    ("first", "second", "is_faster"),
    [
        (100.0, 100.0, True),  # a GPU each
        (50.0, 50.0, False),  # one CPU, shared fairly
        (10.0, 20.0, False),  # real ones: 15 texts a second together where one gave 49
        (60.0, 55.0, True),
        (100.0, 9.0, False),
        (100.0, 10.1, True),
    ],
)
def test_both_work_if_they_are_a_tenth_faster(first: float, second: float, is_faster: bool) -> None:
    finding = measured(first, second).finding
    assert finding is not None
    assert (finding.first, finding.second) == ("a", "b")
    assert finding.alone == pytest.approx(100.0)
    assert finding.together == pytest.approx(first + second)
    assert finding.is_faster_together is is_faster


@pytest.mark.parametrize("names", ["", "a", "b", "ab", "aab", "abb", "aaa", "bbb"])
def test_two_answers_of_each_are_needed(names: str) -> None:
    trial = ColocationTrial("a", "b", ALONE, began=0.0)
    for index, name in enumerate(names):
        trial.answered(name, 10.0, index, index + 1.0)
    assert trial.finding is None


def test_what_the_first_began_before_the_trial_does_not_count() -> None:
    trial = measured(50.0, 50.0)
    before = trial.finding
    trial.answered("a", 1000.0, 9.9, 10.5)
    assert trial.finding == before


def test_other_nodes_do_not_count() -> None:
    trial = measured(50.0, 50.0)
    before = trial.finding
    trial.answered("c", 1000.0, 10.0, 10.5)
    assert trial.finding == before


def test_alone_is_reckoned_for_the_same_requests() -> None:
    # Half of what a short request takes is overhead: slow as it looks, it is as fast as alone.
    trial = ColocationTrial("a", "b", Cost(1.0, 0.01, observations=5), began=0.0)
    for index in range(2):
        trial.answered("a", 100.0, 2.0 * index, 2.0 * index + 2.0)
        trial.answered("b", 100.0, 2.0 * index, 2.0 * index + 2.0)
    assert trial.finding == Finding("a", "b", pytest.approx(50.0), pytest.approx(100.0))


def test_answers_that_took_no_time_are_no_error() -> None:
    trial = ColocationTrial("a", "b", Cost(0.0, 0.0, observations=5), began=0.0)
    for name in "aabb":
        trial.answered(name, 10.0, 1.0, 1.0)
    assert trial.finding is not None


@settings(deadline=None)
@given(st.floats(1.0, 1e4), st.floats(1.0, 1e4), st.integers(2, 6))
def test_the_finding_is_the_ratio_of_the_rates(first: float, second: float, answers: int) -> None:
    finding = measured(first, second, answers).finding
    assert finding is not None
    assert finding.together / finding.alone == pytest.approx((first + second) / 100.0)
    assert finding.is_faster_together == (finding.together >= ENOUGH_GAIN * finding.alone)


@pytest.mark.parametrize(
    ("together", "verdict"),
    [
        (150.0, "together 1.50 times as fast as the first alone, so both work"),
        (31.0, "together 0.31 times as fast as the first alone, so only a works"),
    ],
)
def test_a_finding_is_a_sentence(together: float, verdict: str) -> None:
    assert str(Finding("a", "b", 100.0, together)) == f"a and b share a machine: {verdict}"
