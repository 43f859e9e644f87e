"""When a live embedding is sent a second time: a table, the p95, and the five in a hundred."""

from __future__ import annotations

import json
import random
from typing import Any

import project_paths
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.routing.hedge_policy import Hedging

CASES = json.loads((project_paths.DATA / "hedge.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_when(case: dict[str, Any]) -> None:
    hedging = Hedging(case.get("share", 0.05))
    late = case.get("late", 0)
    for index in range(case["answers"]):
        # Late ones come evenly, and the texts are of all lengths.
        is_late = late and index % (case["answers"] // late) == 0
        predicted = 0.01 * (1 + index % 7)
        hedging.observe(predicted * (9.0 if is_late else case["ratio"]), predicted)
    after = hedging.after(case["predicted"], is_cold=case.get("is_cold", False))
    assert after == (None if case["after"] is None else pytest.approx(case["after"]))


def test_cold_loads_teach_nothing() -> None:
    hedging = Hedging()
    for _ in range(100):
        hedging.observe(9.0, 0.1, is_cold=True)
        hedging.observe(9.0, 0.0)
    assert hedging.ratio is None


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.6])
def test_about_five_in_a_hundred_are_late(noise: float) -> None:
    rng, hedging, late, asked = random.Random(1), Hedging(), 0, 0
    for _ in range(5000):
        predicted = rng.uniform(0.05, 2.0)
        seconds = predicted * rng.lognormvariate(0.0, noise)
        after = hedging.after(predicted)
        if after is not None:
            asked += 1
            late += seconds > after
        hedging.observe(seconds, predicted)
    assert asked > 4900
    assert 0.03 < late / asked < 0.07


def test_it_follows_what_answers_are_like() -> None:
    hedging = Hedging()
    for ratio in (1.0, 3.0):
        for _ in range(300):
            hedging.observe(ratio, 1.0)
        assert hedging.after(1.0) == pytest.approx(ratio)


def test_when_everything_is_late_five_in_a_hundred_are_hedged() -> None:
    hedging, taken = Hedging(), 0
    for _ in range(1000):
        hedging.after(1.0)
        taken += hedging.take()
    assert taken == pytest.approx(50, abs=1)
    idle = Hedging()
    for _ in range(10_000):
        idle.after(1.0)
    # Quiet times save up five, no more.
    assert sum(idle.take() for _ in range(100)) == 5


@given(st.lists(st.booleans(), max_size=300), st.floats(0.0, 0.5))
def test_never_more_than_the_share(late: list[bool], part: float) -> None:
    hedging, taken = Hedging(part), 0
    for count, is_late in enumerate(late, start=1):
        hedging.after(1.0)
        if is_late:
            taken += hedging.take()
        assert taken <= part * count + 1e-6
