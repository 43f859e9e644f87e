"""Whether a failure is worth another attempt: a table, and the limits that always hold."""

from __future__ import annotations

import json
import random
from typing import Any

import project_paths
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol import errors
from aiosollol.core.blame import live_patience
from aiosollol.core.routing.retry import (
    RetryBudget,
    RetryDecision,
    backoff,
    decide,
)
from aiosollol.errors import NodeError, ResponseError, StreamCutOff

CASES = json.loads((project_paths.DATA / "retry.json").read_text())
NOW = 1000.0


def error_of(case: dict[str, Any]) -> NodeError:
    kind = getattr(errors, case["error"])
    if issubclass(kind, ResponseError):
        return kind("n", case.get("status", 500), "no")
    if kind is StreamCutOff:
        return StreamCutOff("n", "cut off", delivered=case.get("delivered", 0))
    return kind("n", "no")


def decision_of(case: dict[str, Any], budget: RetryBudget) -> RetryDecision:
    error = error_of(case)
    has_answered = case.get("has_answered", True)
    waits = live_patience(error, has_answered=has_answered, outage=60.0) - case.get("waited", 0.0)
    return decide(
        error,
        failures=case.get("failures", 1),
        others=case["others"],
        now=NOW,
        deadline=NOW + case.get("left", float("inf")),
        waits_until=NOW + waits,
        budget=budget,
        is_agreed=case.get("is_agreed", False),
        is_guilty=case.get("is_guilty", False),
        is_free=case.get("is_free", False),
        delivered=case.get("delivered", 0),
        max_retries=case.get("max_retries", 3),
    )


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_decisions(case: dict[str, Any]) -> None:
    budget = RetryBudget()
    while case.get("spent") and budget.take(NOW):
        pass
    before = budget.left(NOW)
    decision = decision_of(case, budget)
    assert decision.action == case["action"]
    assert case.get("says", "") in decision.reason
    assert decision.reason
    # Only another node is taken from the budget: pauses bound the rest.
    is_taken = decision.action == "other" and not case.get("is_free", False)
    assert before - budget.left(NOW) == is_taken


def test_the_table_knows_every_error_of_a_node() -> None:
    def below(kind: type[NodeError]) -> set[str]:
        return {kind.__name__}.union(*map(below, kind.__subclasses__()))

    mine = {name for name in below(NodeError) if hasattr(errors, name)}
    assert {case["error"] for case in CASES} == mine


def test_backoff_doubles_and_is_spread_evenly() -> None:
    rng = random.Random(1)
    for retry, most in enumerate([0.05, 0.1, 0.2, 0.4, 0.8, 0.8]):
        pauses = [backoff(retry, rng) for _ in range(2000)]
        assert most / 2 <= min(pauses) < 0.52 * most
        assert 0.98 * most < max(pauses) <= most
        assert sum(pauses) / len(pauses) == pytest.approx(most * 0.75, rel=0.1)
        assert backoff(retry, None) == most
    assert backoff(10_000, rng) <= 0.8


def test_few_requests_may_be_retried_all_the_same() -> None:
    budget = RetryBudget()
    budget.request(NOW)
    assert sum(budget.take(NOW) for _ in range(100)) == 10


def test_a_fifth_of_many() -> None:
    budget = RetryBudget()
    for index in range(1000):
        budget.request(NOW + index / 1000)
    assert sum(budget.take(NOW + 1) for _ in range(1000)) == 210


def test_the_window_slides() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.request(NOW)
    while budget.take(NOW):
        pass
    assert budget.left(NOW) < 1.0
    # In the next window, the last one still counts in part; after two it is forgotten.
    assert budget.left(NOW + 15.0) == pytest.approx(10 + (20 - 30) * 0.5)
    assert budget.left(NOW + 20.0) == 10.0
    assert budget.left(NOW + 1e6) == 10.0


@given(
    st.lists(st.tuples(st.floats(0.0, 3.0), st.booleans()), max_size=200),
    st.floats(0.0, 1.0),
    st.integers(0, 20),
)
def test_never_more_than_the_share_and_the_floor(
    events: list[tuple[float, bool]], part: float, floor: int
) -> None:
    budget = RetryBudget(part, floor)
    now, requests, retries = NOW, 0, 0
    times: list[float] = []
    for seconds, is_retry in events:
        now += seconds
        if is_retry:
            if budget.take(now):
                times.append(now)
                retries += 1
        else:
            budget.request(now)
            requests += 1
        # Whatever the windows: within ten seconds at most those of two floors and all requests.
        recent = [at for at in times if at > now - 10.0]
        assert len(recent) <= 2 * floor + part * requests + 1e-6
    # In the long run an outage adds a fifth, and the floor for each window.
    windows = (now - NOW) / 10.0 + 1
    assert retries <= part * requests + floor * (windows + 1) + 1e-6


def test_an_outage_adds_a_fifth() -> None:
    budget = RetryBudget()
    sent = 0
    for index in range(10_000):
        now = NOW + index / 100
        budget.request(now)
        sent += 1
        failures = 1
        while True:
            decision = decide(
                errors.ServerBusy("n", 503, "busy"),
                failures=failures,
                others=True,
                now=now,
                deadline=now + 60.0,
                budget=budget,
            )
            if decision.action != "other":
                break  # waiting is paced elsewhere
            sent += 1
            failures += 1
    assert sent <= 10_000 * 1.21 + 20
