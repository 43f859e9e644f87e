"""The cost model learns what a node takes, soon, and never says anything absurd."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.scheduling.cost import CHARACTERS_PER_TOKEN, Cost, TokenRatio

quiet = settings(deadline=None)
overheads = st.floats(1e-4, 0.2)
speeds = st.floats(1e-5, 1e-2)  # seconds per token
sizes = st.floats(3.0, 300.0)  # tokens
ratios = st.floats(2.0, 100.0)
anything = st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(-1.0, 1e4)), min_size=1, max_size=12)


def learn(answers: Iterable[tuple[float, float]], cost: Cost | None = None) -> Cost:
    cost = cost or Cost.unknown()
    for tokens, seconds in answers:
        cost = cost.observe(tokens, seconds)
    return cost


def alternate(small: float, large: float, count: int) -> list[float]:
    return list(itertools.islice(itertools.cycle([small, large]), count))


@quiet
@given(overheads, speeds, sizes, ratios, st.integers(4, 8))
def test_two_sizes_tell_overhead_and_speed(
    overhead: float, speed: float, small: float, ratio: float, count: int
) -> None:
    answers = [
        (tokens, overhead + speed * tokens) for tokens in alternate(small, small * ratio, count)
    ]
    cost = learn(answers)
    assert cost.overhead == pytest.approx(overhead, rel=0.05)
    assert cost.seconds_per_token == pytest.approx(speed, rel=0.05)


@quiet
@given(overheads, speeds, sizes, st.integers(1, 8))
def test_one_size_is_predicted_exactly_enough(
    overhead: float, speed: float, tokens: float, count: int
) -> None:
    seconds = overhead + speed * tokens
    cost = learn([(tokens, seconds)] * count)
    assert cost.seconds(tokens) == pytest.approx(seconds, rel=0.05)


def test_one_size_alone_is_put_down_to_the_tokens() -> None:
    # A list ten times as long then looks about ten times as long, which errs on the safe side.
    cost = learn([(100.0, 1.0)] * 5)
    assert 9.0 < cost.seconds(1000.0) < 10.1


@quiet
@given(overheads, speeds, sizes, ratios, st.integers(1, 20), st.booleans())
def test_a_node_that_became_ten_times_slower_is_noticed_in_three_answers(
    overhead: float, speed: float, small: float, ratio: float, usual: int, is_mixed: bool
) -> None:
    # Of two sizes, it takes two answers of each.
    large, slow = (small * ratio, 4) if is_mixed else (small, 3)
    tokens = alternate(small, large, usual + slow)
    seconds = [overhead + speed * size for size in tokens]
    cost = learn(zip(tokens[:usual], seconds, strict=False))
    cost = learn([(size, 10 * (overhead + speed * size)) for size in tokens[usual:]], cost)
    for size in (small, large):
        assert 0.5 <= cost.seconds(size) / (10 * (overhead + speed * size)) <= 2.0


def test_answers_too_fast_for_a_slope_are_overhead() -> None:
    cost = learn([(1000.0, 0.0011)] * 5)
    assert cost.seconds(1000.0) == pytest.approx(0.0011, rel=0.05)
    assert cost.seconds(0.0) < 0.0011


@quiet
@given(anything, st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_more_tokens_never_cost_less_and_nothing_is_negative(
    answers: list[tuple[float, float]], one: float, other: float
) -> None:
    cost = learn(answers)
    assert cost.overhead >= 0.0
    assert cost.seconds_per_token > 0.0
    less, more = sorted((one, other))
    assert 0.0 <= cost.seconds(less) <= cost.seconds(more) < float("inf")


@quiet
@given(anything)
def test_to_observe_leaves_what_was_known_before_alone(answers: list[tuple[float, float]]) -> None:
    cost = learn(answers)
    before = (cost.overhead, cost.seconds_per_token, cost.observations, cost.reach)
    assert cost.observations == len(answers)
    cost.observe(1.0, 1.0)
    assert before == (cost.overhead, cost.seconds_per_token, cost.observations, cost.reach)


def test_before_anything_is_measured_a_gpu_is_taken_to_be_ten_times_faster() -> None:
    cpu, gpu = Cost.unknown(), Cost.unknown(gpu=True)
    assert cpu.seconds_per_token == pytest.approx(10 * gpu.seconds_per_token)
    assert cpu.overhead == gpu.overhead
    assert cpu.observations == gpu.observations == 0


def test_one_answer_replaces_the_guess() -> None:
    fast = Cost.unknown().observe(1000.0, 0.01)
    assert fast.seconds(1000.0) == pytest.approx(0.01, rel=0.05)


def test_reach_is_the_largest_answer_and_fades() -> None:
    cost = learn([(10.0, 1.0), (1000.0, 1.0)])
    assert cost.reach == 1000.0
    assert 10.0 < learn([(10.0, 1.0)] * 3, cost).reach < 500.0
    assert learn([(10.0, 1.0)] * 50, cost).reach == 10.0


IMPLAUSIBLE = [
    pytest.param(100_000, 1, 514, id="a text that was cut to the context length"),
    pytest.param(10, 1, 1000, id="a hundred tokens a character"),
    pytest.param(0, 2, 4, id="empty texts"),
    pytest.param(100, 10, 5, id="fewer than the special tokens"),
    pytest.param(100, 1, 0, id="a server that counts nothing"),
    pytest.param(100, 1, -7, id="a server that counts backwards"),
]


class TestTokenRatio:
    def test_a_text_has_tokens_of_its_own_and_special_ones(self) -> None:
        assert TokenRatio().tokens("") == 2.0
        assert TokenRatio().tokens("x" * 40) == 40 / CHARACTERS_PER_TOKEN + 2

    def test_the_first_count_replaces_the_guess(self) -> None:
        # 10 texts of 60 characters; a server counted 20 tokens of text in each, and 2 special.
        ratio = TokenRatio().observe(600, 10, 220)
        assert ratio.characters == pytest.approx(3.0)
        assert ratio.tokens("x" * 60) == pytest.approx(22.0)

    @pytest.mark.parametrize(("characters", "texts", "tokens"), IMPLAUSIBLE)
    def test_an_implausible_count_is_ignored(
        self, characters: int, texts: int, tokens: int
    ) -> None:
        for ratio in (TokenRatio(), TokenRatio(3.0, 5)):
            assert ratio.observe(characters, texts, tokens) is ratio

    @quiet
    @given(st.lists(st.tuples(*[st.integers(-10, 10_000)] * 3)))
    def test_it_stays_plausible(self, counts: list[tuple[int, int, int]]) -> None:
        ratio = TokenRatio()
        for count in counts:
            ratio = ratio.observe(*count)
        assert 0.3 <= ratio.characters <= 10.0
