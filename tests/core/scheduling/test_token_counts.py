"""The tokens of a batch: what was counted, each item once, and equal texts as often as they are."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.scheduling.token_counts import TokenCounts, shares, weight

ESTIMATED = [10.0, 20.0, 30.0, 40.0]

ANSWERS = [
    # times, answers (node, items, tokens), tokens by node, total, exact
    pytest.param({}, [], {"a": 0}, 0, True, id="none yet"),
    pytest.param({}, [("a", [0, 1], 7), ("b", [2, 3], 9)], {"a": 7, "b": 9}, 16, True, id="two"),
    pytest.param({1: 3}, [("a", [0, 2, 3], 6), ("b", [1], 5)], {"a": 6, "b": 5}, 21, True, id="x3"),
    pytest.param({0: 2, 1: 2}, [("a", [0, 1], 7)], {"a": 7}, 14, True, id="twice each"),
    pytest.param({0: 2}, [("a", [0, 1], 30)], {"a": 30}, 40, False, id="mixed: estimated"),
    pytest.param({}, [("a", [0, 1], 7), ("b", [0, 1], 7)], {"a": 7, "b": 0}, 7, True, id="late"),
    pytest.param(
        {},
        [("a", [2, 3], 9), ("b", [1, 2, 3], 14)],
        {"a": 9, "b": 5},
        14,
        True,
        id="a copy of a part was faster",
    ),
    pytest.param(
        {1: 2, 2: 2, 3: 2},
        [("a", [3], 4), ("c", [2], 5), ("b", [1, 2, 3], 14)],
        {"a": 4, "b": 5, "c": 5},
        28,
        True,
        id="copies of two parts were faster, of repeated texts",
    ),
    pytest.param(
        {},
        [("a", [1, 2], 50), ("b", [2, 3], 70)],
        {"a": 50, "b": 40},
        90,
        False,
        id="overlap in part: in proportion",
    ),
    pytest.param({}, [("a", [0], 3), ("b", [1, 2], 0)], {"a": 3, "b": 50}, 53, False, id="silent"),
    pytest.param(
        {}, [("a", [0], 9), ("b", [0, 1], 5)], {"a": 9, "b": 0}, 9, True, id="never below zero"
    ),
]


@pytest.mark.parametrize(("times", "answers", "by_node", "total", "is_exact"), ANSWERS)
def test_what_is_counted(
    times: dict[int, int],
    answers: list[tuple[str, list[int], int]],
    by_node: dict[str, int],
    total: int,
    is_exact: bool,
) -> None:
    counts = TokenCounts(ESTIMATED, times)
    for answer in answers:
        counts.answered(*answer)
    assert {node: counts.of(node) for node in by_node} == by_node
    assert (counts.total, counts.is_exact) == (total, is_exact)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_chunks_and_copies_of_their_parts_count_each_item_once(
    tokens: list[int], rng: random.Random
) -> None:
    counts = TokenCounts([4.0] * len(tokens))
    start = 0
    while start < len(tokens):
        chunk = list(range(start, min(len(tokens), start + rng.randint(1, 6))))
        cut = rng.randint(0, len(chunk))
        for part in rng.sample([chunk, chunk[:cut], chunk[cut:]], 3):
            counts.answered("a", part, sum(tokens[item] for item in part))
        start = chunk[-1] + 1
    assert (counts.total, counts.is_exact) == (sum(tokens), True)


@given(st.integers(0, 10**6), st.lists(st.floats(0.0, 1e6), max_size=50))
def test_shares_add_up_and_are_in_proportion(tokens: int, weights: list[float]) -> None:
    divided = shares(tokens, weights)
    whole = sum(weights)
    assert sum(divided) == (tokens if whole > 0.0 else 0)
    for share, each in zip(divided, weights, strict=True):
        assert share >= 0
        assert whole <= 0.0 or abs(share - tokens * each / whole) <= 1.0 + 1e-6


WEIGHTS = [
    pytest.param("", 2.0, id="empty"),
    pytest.param("word" * 10, 12.0, id="letters"),
    pytest.param("two words.\n", 5.5, id="a sentence"),
    pytest.param("a[i]+=1;", 8.0, id="code"),
    pytest.param("2026", 4.0, id="a number"),
    pytest.param("日本語の文", 7.0, id="a token for each character"),
    pytest.param("abcd日本", 5.0, id="both"),
    pytest.param("\ud800", 3.0, id="no text"),
]


@pytest.mark.parametrize(("text", "expected"), WEIGHTS)
def test_weights(text: str, expected: float) -> None:
    assert weight(text) == pytest.approx(expected)
