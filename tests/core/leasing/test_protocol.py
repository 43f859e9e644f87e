"""What programs tell one another, and what the coordinator makes of it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.leasing.protocol import (
    DEFAULT_SLOTS,
    PROTOCOL,
    TERM,
    CoordinatorReply,
    KnownCost,
    LeaseCoordinator,
    MemberReport,
    NodeUse,
    node_id,
    slots_of,
)
from aiosollol.core.node import NodeSpec
from aiosollol.errors import InvalidInput

COST = KnownCost(0.01, 0.001, 5, 300.0)


def report(member: str, nodes: dict[str, NodeUse] | None = None, **fields: Any) -> MemberReport:
    known = {"n": NodeUse(2)} if nodes is None else nodes
    values = {"group": "", "weight": 1.0, "serial": 0, **fields}
    return MemberReport(member, nodes=known, **values)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://10.0.0.2:11434", "10.0.0.2:11434"),
        ("10.0.0.2", "10.0.0.2:11434"),
        ("https://10.0.0.2", "https://10.0.0.2:443"),
        ("http://proxy:80/gpu1", "proxy:80/gpu1"),
        ("http://localhost:11434", "here/localhost:11434"),
        ("127.0.0.1", "here/127.0.0.1:11434"),
        ("http://[::1]:11434", "here/[::1]:11434"),
        ("http://[fd00::2]:11434", "[fd00::2]:11434"),
    ],
)
def test_a_node_has_one_name_in_all_programs(url: str, expected: str) -> None:
    assert node_id(NodeSpec(url), "here") == expected


def test_slots_are_what_the_user_says_or_a_guess() -> None:
    assert slots_of(NodeSpec("10.0.0.2")) == DEFAULT_SLOTS
    assert slots_of(NodeSpec("10.0.0.2", max_concurrency=1)) == 1


texts = st.text(min_size=1, max_size=5)
counts = st.integers(0, 100)
uses = st.builds(NodeUse, counts, counts, counts, st.booleans())
positive = st.floats(0.0, 100.0)
costs = st.dictionaries(
    st.tuples(texts, texts), st.builds(KnownCost, positive, positive, counts, positive), max_size=3
)


@given(
    st.builds(
        MemberReport,
        texts,
        texts,
        positive,
        counts,
        st.dictionaries(texts, uses, max_size=3),
        costs,
    )
)
def test_a_report_is_the_same_after_its_way(told: MemberReport) -> None:
    assert MemberReport.load(told.dump()) == told
    assert (
        MemberReport.load(json.loads(json.dumps(told.dump()))) == told
    )  # plain values all through


@given(
    st.builds(
        CoordinatorReply,
        st.dictionaries(texts, counts, max_size=3),
        positive,
        counts,
        st.booleans(),
        st.frozensets(texts, max_size=3),
        costs,
        st.lists(texts, max_size=3).map(tuple),
        counts,
        st.dictionaries(texts, positive, max_size=3),
    )
)
def test_an_answer_is_the_same_after_its_way(told: CoordinatorReply) -> None:
    assert CoordinatorReply.load(json.loads(json.dumps(told.dump()))) == told


@pytest.mark.parametrize(
    "told",
    [{}, {"member": "a"}, {**report("a").dump(), "nodes": 3}, {**report("a").dump(), "costs": [1]}],
)
def test_what_is_no_report_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="invalid member report"):
        MemberReport.load(told)


@pytest.mark.parametrize("change", [{"protocol": PROTOCOL + 1}, {"slots": None}, {"costs": [()]}])
def test_what_is_no_answer_is_refused(change: dict[str, Any]) -> None:
    told = CoordinatorReply({"n": 1}, TERM, 1).dump()
    with pytest.raises(InvalidInput, match="invalid coordinator reply"):
        CoordinatorReply.load({**told, **change})


def test_two_members_divide_a_node_and_the_least_capacity_counts() -> None:
    commons = LeaseCoordinator()
    four, two = {"n": NodeUse(4, wants=4)}, {"n": NodeUse(2, wants=4)}
    first = commons.exchange(report("a", four), 0.0)
    assert (dict(first.slots), first.is_new, first.members) == ({"n": 4}, True, 1)
    commons.exchange(report("b", two), 0.1)
    again = commons.exchange(report("a", four, serial=first.serial), 0.2)
    assert (dict(again.slots), again.is_new, again.members) == ({"n": 1}, False, 2)
    assert commons.exchange(report("b", two, serial=1), 0.3).slots == {"n": 0}  # not confirmed yet
    commons.exchange(report("a", four, serial=again.serial), 0.4)
    assert commons.exchange(report("b", two, serial=2), 0.5).slots == {"n": 1}


def test_who_does_not_ask_is_forgotten_and_so_are_the_nodes_that_only_he_named() -> None:
    commons = LeaseCoordinator()
    commons.exchange(report("a", {"n": NodeUse(2), "m": NodeUse(2)}), 0.0)
    answer = commons.exchange(report("b"), 1.0)
    assert answer.elsewhere == ("m",)
    answer = commons.exchange(report("b", serial=answer.serial), TERM + 0.5)
    assert (answer.elsewhere, answer.members) == ((), 1)
    assert set(commons.statistics(TERM + 0.5).nodes) == {"n"}


def test_who_leaves_is_gone_at_once() -> None:
    commons = LeaseCoordinator()
    commons.exchange(report("a", {"n": NodeUse(2, wants=2)}), 0.0)
    commons.leave("a", 0.1)
    assert not commons.members
    assert commons.exchange(report("b", {"n": NodeUse(2, wants=2)}), 0.2).slots == {"n": 2}


def test_a_group_is_told_by_the_greatest_weight_in_it() -> None:
    commons = LeaseCoordinator()
    commons.exchange(report("a", group="g", weight=2.0), 0.0)
    commons.exchange(report("b", group="g", weight=3.0), 0.0)
    assert commons.exchange(report("c"), 0.0).groups == {"g": 3.0, "c": 1.0}


def test_down_is_what_all_others_find_down() -> None:
    commons = LeaseCoordinator()
    down, up = {"n": NodeUse(2, is_down=True)}, {"n": NodeUse(2)}
    assert commons.exchange(report("a", down), 0.0).down == frozenset()  # nobody else knows it
    assert commons.exchange(report("b", up), 0.0).down == {"n"}
    assert commons.exchange(report("c", up), 0.0).down == frozenset()  # b finds it up
    commons.exchange(report("b", down), 0.0)
    assert commons.exchange(report("c", up), 0.0).down == {"n"}


def test_costs_go_to_those_who_have_the_node_and_once() -> None:
    commons = LeaseCoordinator()
    key = ("n", "model:latest")
    assert commons.exchange(report("a", costs={key: COST}), 0.0).costs == {}
    assert commons.exchange(report("b"), 0.0).costs == {key: COST}
    assert commons.exchange(report("b"), 0.0).costs == {}
    assert commons.exchange(report("c", {"m": NodeUse(1)}), 0.0).costs == {}
    newer = COST._replace(overhead=0.02)
    commons.exchange(report("a", costs={key: newer}), 0.0)
    assert commons.exchange(report("b"), 0.0).costs == {key: newer}


def test_costs_outlive_who_told_them_but_not_their_node() -> None:
    commons = LeaseCoordinator()
    key = ("n", "model:latest")
    commons.exchange(report("a", costs={key: COST}), 0.0)
    commons.exchange(report("b"), 0.0)
    commons.leave("a", 0.0)
    assert commons.exchange(report("c"), 0.0).costs == {key: COST}
    commons.leave("b", 0.0)
    commons.leave("c", 0.0)
    assert commons.exchange(report("d"), 0.0).costs == {}


@pytest.mark.parametrize(
    "change",
    [
        {"overhead": math.nan},
        {"overhead": -1.0},
        {"seconds_per_token": 0.0},
        {"seconds_per_token": math.inf},
        {"observations": 2},
        {"reach": math.inf},
    ],
)
def test_costs_that_cannot_be_are_nobody_s(change: dict[str, Any]) -> None:
    cost = COST._replace(**change)
    assert COST.is_sound
    assert not cost.is_sound
    commons = LeaseCoordinator()
    commons.exchange(report("a", costs={("n", "m"): cost}), 0.0)
    assert commons.exchange(report("b"), 0.0).costs == {}


def test_nonsense_is_refused_and_changes_nothing() -> None:
    commons = LeaseCoordinator()
    for wrong in (report("a", weight=0.0), report(""), report("a", {"n": NodeUse(-1)})):
        with pytest.raises(InvalidInput):
            commons.exchange(wrong, 0.0)
    assert not commons.members
