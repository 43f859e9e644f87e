"""Agreement of vectors: which nodes are asked for a sample, and which differ."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.agreement import (
    ENOUGH,
    Sample,
    Use,
    compare,
    compare_samples,
    due,
    explain_difference,
    is_sound,
    worst_cosine,
)

RIGHT = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
NEAR = [[1.0, 0.001, 0.0], [0.0, 1.0, 0.001]]
WRONG = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
ONE_WRONG = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
OTHER = [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
LONGER = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
ZEROS = [[0.0] * 3, [0.0] * 3]
INVALID = [[math.nan, 0.0, 0.0], [0.0, 1.0, 0.0]]
NONE: list[list[float]] = []
KINDS = [RIGHT, NEAR, WRONG, ONE_WRONG, OTHER, LONGER, ZEROS, INVALID, NONE]


# Which nodes are asked.


@pytest.mark.parametrize(
    ("uses", "samples", "expected"),
    [
        pytest.param({}, {}, "", id="no node embeds"),
        pytest.param({"a": ("d", 1, True)}, {}, "", id="one node embeds"),
        pytest.param({"a": ("d", 1, True), "b": ("d", 2, True)}, {}, "ab", id="two nodes embed"),
        pytest.param({"a": ("d", 1, True), "b": ("e", 2, True)}, {}, "", id="two digests"),
        pytest.param(
            {"a": ("d", 1, True), "b": ("e", 2, True), "c": ("d", 3, True)},
            {},
            "ac",
            id="two of one digest",
        ),
        pytest.param({"a": ("", 1, True), "b": ("", 2, True)}, {}, "ab", id="unknown digests"),
        pytest.param({"a": ("d", 1, True), "b": ("d", 2, False)}, {}, "a", id="one unloaded"),
        pytest.param(
            {"a": ("d", 1, True), "b": ("d", 2, True)}, {"a": ("d", 1)}, "b", id="one is known"
        ),
        pytest.param(
            {"a": ("d", 1, True), "b": ("d", 2, True)},
            {"a": ("d", 1), "b": ("d", 2)},
            "",
            id="both are known",
        ),
        pytest.param(
            {"a": ("d", 9, True), "b": ("d", 2, True)},
            {"a": ("d", 1), "b": ("d", 2)},
            "a",
            id="a new version of one",
        ),
        pytest.param(
            {"a": ("e", 9, True), "b": ("d", 2, True)},
            {"b": ("d", 2)},
            "",
            id="a new digest of one, alone with it",
        ),
        pytest.param(
            {"b": ("d", 5, True)}, {"a": ("d", 1)}, "b", id="the other one's sample is enough"
        ),
    ],
)
def test_which_nodes_are_asked(
    uses: dict[str, Any], samples: dict[str, Any], expected: str
) -> None:
    assert due(
        {name: Use(*use) for name, use in uses.items()},
        {name: Sample(*sample, RIGHT) for name, sample in samples.items()},
    ) == list(expected)


uses_of = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(Use, st.sampled_from(["", "d", "e"]), st.floats(0, 3), st.booleans()),
)
samples_of = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(Sample, st.sampled_from(["", "d", "e"]), st.floats(0, 3), st.just(RIGHT)),
)


@given(uses_of, samples_of)
def test_a_node_is_asked_once(uses: dict[str, Use], samples: dict[str, Sample]) -> None:
    asked = due(uses, samples)
    for name in asked:
        assert uses[name].is_loaded
        samples[name] = Sample(uses[name].digest, uses[name].since, RIGHT)
    assert due(uses, samples) == []


# Which nodes differ.


@pytest.mark.parametrize(
    ("vectors", "distrusted", "differing", "is_majority"),
    [
        pytest.param([RIGHT, RIGHT], "", "", True, id="equal"),
        pytest.param([RIGHT, NEAR], "", "", True, id="equal but for rounding"),
        pytest.param([RIGHT, WRONG], "", "b", False, id="two differ: the first stays"),
        pytest.param([RIGHT, ONE_WRONG], "", "b", False, id="in one text"),
        pytest.param([RIGHT, LONGER], "", "b", False, id="in length"),
        pytest.param([WRONG, RIGHT, RIGHT], "", "a", True, id="the majority counts, not the first"),
        pytest.param([RIGHT, WRONG, OTHER], "", "bc", False, id="three of three kinds"),
        pytest.param([RIGHT, WRONG, WRONG, RIGHT], "", "bc", False, id="two of each"),
        pytest.param([RIGHT, WRONG, WRONG, RIGHT], "a", "ad", False, id="two of each, b first"),
        pytest.param([RIGHT, WRONG], "a", "a", False, id="those in use stay"),
        pytest.param([RIGHT, WRONG], "ab", "b", False, id="no node is trusted"),
        pytest.param([INVALID, RIGHT], "", "a", True, id="NaN never stays"),
        pytest.param([NONE, RIGHT], "b", "a", True, id="NaN never stays, not even if trusted"),
        pytest.param([ZEROS, RIGHT, RIGHT], "", "a", True, id="nor do zeros"),
        pytest.param([RIGHT, INVALID, WRONG], "", "bc", False, id="NaN is no voice"),
    ],
)
def test_which_nodes_differ(
    vectors: list[Any], distrusted: str, differing: str, is_majority: bool
) -> None:
    names = "abcdef"[: len(vectors)]
    samples = {name: Sample("d", at, vectors[at]) for at, name in enumerate(names)}
    for order in (names, reversed(names)):  # time decides, not the order in the mapping
        verdict = compare_samples(
            {name: samples[name] for name in order}, set(names) - set(distrusted)
        )
        assert verdict is not None
        assert set(verdict.differing) == set(differing)
        assert set(verdict.agreeing) == set(names) - set(differing)
        assert verdict.is_majority is is_majority
        for name in differing:
            why = explain_difference(name, verdict)
            assert ("unknown" in why) is not is_majority
            assert all(other in why for other in verdict.agreeing)


@pytest.mark.parametrize("vectors", [[], [RIGHT], [WRONG], [INVALID], [INVALID, NONE, ZEROS]])
def test_without_a_comparison_there_is_no_verdict(vectors: list[Any]) -> None:
    samples = {str(at): Sample("d", at, each) for at, each in enumerate(vectors)}
    assert compare_samples(samples, set(samples)) is None


@given(
    st.dictionaries(
        st.sampled_from("abcdefg"),
        st.builds(Sample, st.just("d"), st.floats(0, 9), st.sampled_from(KINDS)),
        min_size=2,
    ),
    st.sets(st.sampled_from("abcdefg")),
)
def test_verdicts(samples: dict[str, Sample], trusted: set[str]) -> None:
    verdict = compare_samples(samples, trusted)
    sound = {name for name, each in samples.items() if is_sound(each.vectors)}
    if verdict is None:
        assert not sound
        return
    agreeing, differing = set(verdict.agreeing), set(verdict.differing)
    assert agreeing | differing == set(samples)
    assert verdict.reference in agreeing <= sound, "a node stays, and none with NaN"
    assert verdict.reference in trusted or not sound & trusted
    for name in agreeing:
        against = samples[verdict.reference].vectors
        assert worst_cosine(against, samples[name].vectors) >= ENOUGH
    if len(agreeing) == len(sound):
        assert verdict.is_majority
    # Nothing changes when it is judged again with what it decided.
    again = compare_samples(samples, agreeing)
    assert again is not None
    assert set(again.agreeing) == agreeing


def test_verify_and_the_canary_take_the_same_reference() -> None:
    vectors = {"a": WRONG, "b": RIGHT, "c": NEAR, "d": NONE}
    agreement = compare("m", vectors, vectors, {}, {})
    verdict = compare_samples(
        {name: Sample("d", 0.0, each) for name, each in vectors.items()}, vectors
    )
    assert verdict is not None
    assert (agreement.reference, agreement.outliers) == (verdict.reference, verdict.differing)
    assert agreement.outliers == ("a", "d")
