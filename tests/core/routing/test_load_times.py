"""Seconds of model loads: as seen, or estimated from the loads most like them."""

from __future__ import annotations

import pytest

from aiosollol.core.routing.load_times import LoadTimes

GB = 10**9
Load = tuple[str, str, int, float]


@pytest.mark.parametrize(
    ("loads", "asked", "seconds"),
    [
        ([], ("a", "m", GB), 5.0),
        ([("a", "m", GB, 2.0)], ("a", "m", GB), 2.0),
        ([("a", "m", GB, 2.0), ("a", "m", GB, 4.0)], ("a", "m", GB), 3.0),
        ([("a", "m", GB, 2.0)], ("a", "twice", 2 * GB), 4.0),
        ([("a", "m", GB, 2.0)], ("b", "m", GB), 2.0),
        ([("a", "m", GB, 2.0)], ("b", "half", GB // 2), 1.0),
        ([("a", "m", GB, 2.0)], ("a", "unknown size", 0), 2.0),
        ([("a", "m", 0, 2.0)], ("a", "other", GB), 2.0),
        ([("a", "m", GB, 2.0), ("b", "n", GB, 20.0)], ("b", "m", GB), 20.0),
        ([("a", "m", GB, 1.0), ("b", "m", GB, 3.0), ("c", "n", GB, 9.0)], ("d", "m", GB), 2.0),
    ],
    ids=str,
)
def test_estimates(loads: list[Load], asked: tuple[str, str, int], seconds: float) -> None:
    times = LoadTimes()
    times.seconds(*asked)  # an earlier estimate is not kept
    for load in loads:
        times.observe(*load)
    assert times.seconds(*asked) == pytest.approx(seconds)
