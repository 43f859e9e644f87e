"""Lengths of answers: of a new one, and of what is left of one under way."""

from __future__ import annotations

import pytest

from aiosollol.core.routing.output_lengths import LengthsByLimit, OutputLengths


def lengths(*tokens: float) -> OutputLengths:
    known = OutputLengths()
    for each in tokens:
        known.observe(each)
    return known


@pytest.mark.parametrize(
    ("known", "most", "expected"),
    [
        ([], 0, 200.0),
        ([], 50, 50.0),
        ([100.0] * 5, 0, 100.0),
        ([100.0] * 5, 10, 10.0),
        ([100.0] * 5, 1000, 100.0),
        ([10.0] * 90 + [1000.0] * 10, 10, 10.0),
        ([0.0, 0.0], 0, 0.0),
    ],
    ids=str,
)
def test_expected(known: list[float], most: int, expected: float) -> None:
    assert lengths(*known).expected(most) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("known", "produced", "most", "expected"),
    [
        ([], 50.0, 0, 150.0),
        ([], 300.0, 0, 300.0),
        ([100.0] * 5, 0.0, 0, 100.0),
        ([100.0] * 5, 60.0, 0, 40.0),
        ([100.0] * 5, 98.0, 0, 2.0),
        ([100.0] * 5, 130.0, 0, 30.0),
        ([100.0] * 5, 60.0, 70, 10.0),
        ([100.0] * 5, 80.0, 70, 0.0),
        # One that is longer than the short ones is a long one.
        ([10.0, 1000.0] * 20, 50.0, 0, 950.0),
    ],
    ids=str,
)
def test_left(known: list[float], produced: float, most: int, expected: float) -> None:
    assert lengths(*known).left(produced, most) == pytest.approx(expected, rel=0.02)


def test_old_answers_fade_and_weights_stay_finite() -> None:
    known = lengths(*[10.0] * 500, *[100.0] * 500)
    assert known.expected() > 95.0
    for _ in range(5000):
        known.observe(50.0)
    assert known.expected() == pytest.approx(50.0)


def test_requests_with_different_limits_are_those_of_different_applications() -> None:
    known = LengthsByLimit()
    assert known.of(1000).expected(1000) == 200.0
    for _ in range(50):
        known.observe(10.0, 10)
    assert known.of(1000).expected(1000) == pytest.approx(10.0), "as all answers so far"
    for _ in range(5):
        known.observe(900.0, 1000)
    assert known.of(1000).expected(1000) == pytest.approx(900.0)
    assert known.of(800).expected(800) == pytest.approx(800.0), "of the same order"
    assert known.of(10).expected(10) == pytest.approx(10.0)
    for _ in range(20):
        known.observe(10.0, 10)
    assert 10.0 < known.of(0).expected() < 900.0
