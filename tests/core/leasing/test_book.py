"""Slots of nodes leased to members: none twice, all in use, shared by weight."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lease_parts import TERM, TURN, ask

from aiosollol.core.leasing.book import Lease, LeaseBook
from aiosollol.core.leasing.fair_share import water
from aiosollol.errors import InvalidInput

# --- what is fair on one node, in fractions ---------------------------------------------------


@pytest.mark.parametrize(
    ("capacity", "claims", "shares"),
    [
        (4, [], []),
        (4, [(1, 9, 0), (1, 9, 0)], [2, 2]),
        (4, [(3, 9, 0), (1, 9, 0)], [3, 1]),
        (4, [(1, 1, 0), (1, 9, 0)], [1, 3]),
        (4, [(1, 1, 0), (1, 2, 0)], [1, 2]),  # there is more than they want
        (0, [(1, 2, 0)], [0]),
        (2, [(1, 9, 0), (1, 9, 2)], [2, 0]),  # the second has two elsewhere
        (4, [(1, 9, 0), (1, 9, 2)], [3, 1]),
        (3, [(2, 9, 0), (1, 9, 0), (1, 9, 9)], [2, 1, 0]),
        (5, [(1, 1, 0), (1, 9, 0), (1, 9, 0)], [1, 2, 2]),
        (1, [(1e-3, 1, 0), (1e3, 1, 0)], [1e-6, 1]),
        (1, [(1, 1, 5), (1, 1, 7)], [1, 0]),
        (3, [(1, 1, 5), (1, 9, 9)], [1, 2]),  # the first is full before the level of the second
    ],
)
def test_water_finds_its_level(
    capacity: float, claims: list[tuple[float, float, float]], shares: list[float]
) -> None:
    assert water(capacity, claims) == pytest.approx(shares, abs=1e-5)


@given(
    st.integers(0, 40),
    st.lists(
        st.tuples(st.floats(0.01, 100), st.integers(0, 20), st.floats(0, 20)),
        min_size=1,
        max_size=9,
    ),
)
@settings(deadline=None)
def test_water_is_max_min_fair(capacity: int, claims: list[tuple[float, float, float]]) -> None:
    shares = water(capacity, claims)
    assert sum(shares) == pytest.approx(min(capacity, sum(wants for _, wants, _ in claims)))
    levels = [
        (share + elsewhere) / weight
        for share, (weight, _, elsewhere) in zip(shares, claims, strict=True)
    ]
    for at, (_, wants, _) in enumerate(claims):
        assert 0.0 <= shares[at] <= wants
        if shares[at] < wants - 1e-6:  # nobody who was given something stands higher
            assert all(
                levels[at] >= level - 1e-6 * max(1.0, level)
                for level, share in zip(levels, shares, strict=True)
                if share > 1e-6
            )


# --- who gets what, once all have asked often enough -------------------------------------------


def settled(
    slots: Mapping[str, int], members: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, int]]:
    """What each has, without zeros, after three rounds within one turn. Nobody uses anything."""
    book, leases = LeaseBook(term=TERM, turn=TURN), {name: Lease({}, 0.0, 0) for name in members}
    book.set_nodes(slots, 0.0)
    for _ in range(3):
        for name, what in members.items():
            leases[name] = ask(book, name, serial=leases[name].serial, **what)
    return {
        name: {node: count for node, count in lease.slots.items() if count}
        for name, lease in leases.items()
    }


@pytest.mark.parametrize(
    ("slots", "members", "expected"),
    [
        pytest.param(
            {"n": 4},
            {"a": {"wants": {"n": 9}}, "b": {"wants": {"n": 9}}},
            {"a": {"n": 2}, "b": {"n": 2}},
            id="equal weights",
        ),
        pytest.param(
            {"n": 4},
            {"a": {"wants": {"n": 9}, "weight": 3.0}, "b": {"wants": {"n": 9}}},
            {"a": {"n": 3}, "b": {"n": 1}},
            id="3 to 1",
        ),
        pytest.param(
            {"n": 4},
            {"a": {"wants": {"n": 1}}, "b": {"wants": {"n": 9}}},
            {"a": {"n": 1}, "b": {"n": 3}},
            id="who wants little leaves the rest",
        ),
        pytest.param(
            {"n": 4}, {"a": {}, "b": {}}, {"a": {"n": 2}, "b": {"n": 2}}, id="given in advance"
        ),
        pytest.param(
            {"n": 4},
            {"a": {}, "b": {"wants": {"n": 4}}},
            {"a": {}, "b": {"n": 4}},
            id="called back from who is idle",
        ),
        pytest.param(
            {"n": 6},
            {"a": {}, "b": {"wants": {"n": 2}}},
            {"a": {"n": 2}, "b": {"n": 4}},
            id="the rest goes to all",
        ),
        pytest.param(
            {"n1": 1, "n2": 1, "n3": 1},
            {"a": {}, "b": {}, "c": {}},
            {"a": {"n1": 1}, "b": {"n2": 1}, "c": {"n3": 1}},
            id="in advance, to others on other nodes",
        ),
        pytest.param(
            {"n1": 1, "n2": 1},
            {"a": {"wants": {"n1": 9, "n2": 9}}, "b": {"wants": {"n1": 9}}},
            {"a": {"n2": 1}, "b": {"n1": 1}},
            id="who can use one node only has it",
        ),
        pytest.param(
            {"n1": 2, "n2": 2},
            {"a": {"wants": {"n1": 9, "n2": 9}}, "b": {"wants": {"n2": 9}}},
            {"a": {"n1": 2}, "b": {"n2": 2}},
            id="and all of it",
        ),
        pytest.param(
            {"n": 4},
            {
                "a": {"wants": {"n": 9}, "group": "one"},
                "b": {"wants": {"n": 9}, "group": "one"},
                "c": {"wants": {"n": 9}, "group": "other"},
            },
            {"a": {"n": 1}, "b": {"n": 1}, "c": {"n": 2}},
            id="a group shares one weight",
        ),
        pytest.param(
            {"n": 8},
            {
                "a": {"wants": {"n": 1}, "group": "one"},
                "b": {"wants": {"n": 9}, "group": "one"},
                "c": {"wants": {"n": 9}, "group": "other"},
            },
            {"a": {"n": 1}, "b": {"n": 3}, "c": {"n": 4}},
            id="what a member leaves stays in its group",
        ),
        pytest.param(
            {"n": 4},
            {
                "a": {"wants": {"n": 9}, "group": "one"},
                "b": {"wants": {"n": 0}, "group": "one", "weight": 3.0},
                "c": {"wants": {"n": 9}},
            },
            {"a": {"n": 3}, "b": {}, "c": {"n": 1}},
            id="the greatest weight in a group",
        ),
        pytest.param({"n": 0}, {"a": {"wants": {"n": 3}}}, {"a": {}}, id="a node without slots"),
        pytest.param({}, {"a": {"wants": {"n": 3}}}, {"a": {}}, id="no nodes"),
        pytest.param(
            {"n1": 4, "n2": 2},
            {
                "a": {"wants": {"n1": 9, "n2": 9}, "nodes": {"n1": 3}},
                "b": {"wants": {"n3": 1}, "nodes": {"n3": 5, "n1": 9}},
                "c": {},
            },
            {"a": {"n1": 3}, "b": {"n3": 3}, "c": {"n2": 2, "n3": 2}},
            id="each its nodes; the least that anybody named",
        ),
    ],
)
def test_what_everybody_has(
    slots: dict[str, int],
    members: dict[str, dict[str, Any]],
    expected: dict[str, dict[str, int]],
) -> None:
    assert settled(slots, members) == expected


def test_equal_questions_have_equal_answers() -> None:
    members = {name: {"wants": {"n1": 3, "n2": 1}} for name in "abc"}
    assert settled({"n1": 4, "n2": 3}, members) == settled({"n1": 4, "n2": 3}, members)


# --- no slot twice ------------------------------------------------------------------------------


def test_a_slot_called_back_is_held_until_its_holder_confirms() -> None:
    book = LeaseBook(term=TERM, turn=TURN)
    book.set_nodes({"n": 2}, 0.0)
    first = ask(book, "a", wants={"n": 2})
    assert first == Lease({"n": 2}, TERM, 1)
    assert ask(book, "b", wants={"n": 2}).slots == {"n": 0}
    lower = ask(book, "a", serial=1, wants={"n": 2}, using={"n": 2})
    assert lower.slots == {"n": 1}
    assert ask(book, "b", wants={"n": 2}, serial=1).slots == {"n": 0}  # "a" was asked, no more
    ask(book, "a", serial=2, wants={"n": 2}, using={"n": 2})
    assert ask(book, "b", wants={"n": 2}, serial=2).slots == {"n": 0}  # both are still under way
    ask(book, "a", serial=2, wants={"n": 2}, using={"n": 1})
    assert ask(book, "b", wants={"n": 2}, serial=3).slots == {"n": 1}
    ask(book, "a", serial=2, wants={"n": 9}, using={"n": 2})  # an old question, come late
    seen = book.statistics().nodes["n"]
    assert (seen.free, seen.members["a"].held) == (-1, 2)


@pytest.mark.parametrize("ending", ["leave", "expire"])
def test_slots_of_who_is_gone_are_free_at_once(ending: str) -> None:
    book = LeaseBook(term=TERM, turn=TURN)
    book.set_nodes({"n": 2}, 0.0)
    ask(book, "a", wants={"n": 2})
    assert ask(book, "b", 1.0, wants={"n": 2}).slots == {"n": 0}
    if ending == "leave":
        book.leave("a", 2.0)
        book.leave("a", 2.0)  # and again
        assert book.expire(2.0) == []
        assert ask(book, "b", 2.0, serial=1, wants={"n": 2}).slots == {"n": 2}
    else:
        assert ask(book, "b", TERM - 0.1, serial=1, wants={"n": 2}).slots == {"n": 0}
        assert ask(book, "b", TERM, serial=2, wants={"n": 2}).slots == {"n": 2}
        assert book.expire(TERM) == ["a"]  # told once, also when a question found out
        assert book.expire(TERM) == []


def test_what_a_newcomer_has_under_way_is_a_fact() -> None:
    book = LeaseBook(term=TERM, turn=TURN)
    book.set_nodes({"n": 2}, 0.0)
    assert ask(book, "a", wants={"n": 2}).slots == {"n": 2}
    came = ask(book, "b", serial=7, wants={"n": 5}, using={"n": 5})
    assert came == Lease({"n": 0}, TERM, 8)  # its serial goes up, whoever gave it the last one
    assert book.statistics().nodes["n"].free == -5
    lower = ask(book, "a", serial=1, wants={"n": 2}, using={"n": 2})
    assert lower.slots == {"n": 1}
    ask(book, "a", serial=2, wants={"n": 1}, using={"n": 1})
    # It is given what fits beside the others, not what it has.
    assert ask(book, "b", serial=8, wants={"n": 5}, using={"n": 2}).slots == {"n": 1}
    assert ask(book, "c", wants={"n": 1}).slots == {"n": 0}
    ask(book, "b", serial=9, wants={"n": 0})
    assert ask(book, "c", serial=1, wants={"n": 1}).slots == {"n": 0}  # "b" still has its lease
    ask(book, "b", serial=10, wants={"n": 0})
    assert ask(book, "c", serial=2, wants={"n": 1}).slots == {"n": 1}


def test_an_old_question_frees_nothing() -> None:
    book = LeaseBook(term=TERM, turn=TURN)
    book.set_nodes({"n": 2}, 0.0)
    ask(book, "a", wants={"n": 2})
    ask(book, "b", wants={"n": 2})
    assert ask(book, "a", serial=1, wants={"n": 2}, using={"n": 2}).slots == {"n": 1}
    ask(book, "a", serial=2, wants={"n": 2}, using={"n": 2})
    ask(book, "a", serial=1, wants={"n": 2}, using={"n": 0})  # from before it began anything
    assert ask(book, "b", serial=1, wants={"n": 2}).slots == {"n": 0}
    ask(book, "a", serial=3, wants={"n": 2}, using={"n": 1})
    assert ask(book, "b", serial=2, wants={"n": 2}).slots == {"n": 1}


def test_a_node_that_returns_is_still_leased() -> None:
    book = LeaseBook(term=TERM, turn=TURN)
    book.set_nodes({"n": 2, "m": 1}, 0.0)
    ask(book, "a", wants={"n": 2})
    book.set_nodes({"m": 1}, 1.0)
    assert "n" not in ask(book, "b", 1.0, wants={"n": 2}).slots
    book.set_nodes({"m": 1, "n": 2}, 2.0)
    assert ask(book, "b", 2.0, serial=1, wants={"n": 2}).slots["n"] == 0
    lower = ask(book, "a", 2.0, serial=1, wants={"n": 2})
    ask(book, "a", 2.0, serial=lower.serial, wants={"n": 2})
    assert ask(book, "b", 2.0, serial=2, wants={"n": 2}).slots["n"] == 1


def test_a_member_that_never_confirms_does_not_fill_the_book() -> None:
    book = LeaseBook(term=TERM, turn=TURN)
    book.set_nodes({"n": 2}, 0.0)
    for at in range(100):
        assert ask(book, "a", at / 10, wants={"n": 2}).serial == at + 1
    ask(book, "b", 10.0, wants={"n": 2})
    assert ask(book, "a", 10.0, serial=3, wants={"n": 0}).slots == {"n": 0}
    assert ask(book, "b", 10.0, serial=1, wants={"n": 2}).slots == {"n": 0}
    ask(book, "a", 10.0, serial=101)
    assert ask(book, "b", 10.0, serial=2, wants={"n": 2}).slots == {"n": 2}
    assert len(book._members["a"].leases) <= 32


def test_a_lease_can_be_sent() -> None:
    book = LeaseBook()
    book.set_nodes({"n": 2}, 0.0)
    lease = ask(book, "a")
    assert pickle.loads(pickle.dumps(lease)) == lease
    lease.slots["n"] = 99  # type: ignore[index]  # whoever has it may change it: it is a copy
    assert ask(book, "b", wants={"n": 1}).slots == {"n": 0}


def test_statistics() -> None:
    book = LeaseBook()
    book.set_nodes({"n": 3, "m": 0}, 0.0)
    ask(book, "b", wants={"n": 1}, group="app", weight=2.0)
    ask(book, "a", wants={"n": 4}, using={"n": 1})
    seen = book.statistics()
    assert list(seen.nodes) == ["m", "n"]
    node = seen.nodes["n"]
    assert (node.capacity, node.free) == (3, -1)
    assert {name: (each.held, each.target, each.wants) for name, each in node.members.items()} == {
        "a": (1, 2, 4),
        "b": (3, 1, 1),
    }
    a, b = seen.groups
    assert (a.name, a.members, a.weight, a.held) == ("a", ("a",), 1.0, 1)
    assert (b.name, b.members, b.weight, b.held, b.fair) == ("app", ("b",), 2.0, 3, 1.0)


def test_a_member_may_change_its_group() -> None:
    book = LeaseBook()
    book.set_nodes({"n": 1}, 0.0)
    ask(book, "a", group="one")
    ask(book, "a", group="two", serial=1)
    assert [group.name for group in book.statistics().groups] == ["two"]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda _: LeaseBook(term=0.0), "term of a lease must be a number above 0"),
        (lambda _: LeaseBook(turn=math.inf), "a turn must be a number above 0"),
        (lambda book: book.set_nodes({"n": -1}, 0.0), "slots of nodes must be whole numbers"),
        (lambda book: book.set_nodes({"n": 1.5}, 0.0), "not 1.5 for n"),
        (lambda book: book.set_nodes({"n": True}, 0.0), "not True for n"),
        (lambda book: book.set_nodes({"": 1}, 0.0), "name of a node must be"),
        (lambda book: book.set_nodes({}, math.nan), "now must be a number of seconds"),
        (lambda book: ask(book, ""), "name of a member must be"),
        (lambda book: ask(book, 3), "name of a member must be"),
        (lambda book: ask(book, "a", weight=0.0), "a weight must be a number above 0"),
        (lambda book: ask(book, "a", weight=math.nan), "a weight must be a number above 0"),
        (lambda book: ask(book, "a", weight=True), "a weight must be a number above 0"),
        (lambda book: ask(book, "a", weight="1"), "a weight must be a number above 0"),
        (lambda book: ask(book, "a", group=None), "a group must be a string"),
        (lambda book: ask(book, "a", serial=-1), "a serial must be a whole number"),
        (lambda book: ask(book, "a", wants={"n": -1}), "wants must be whole numbers of at least 0"),
        (
            lambda book: ask(book, "a", using={"n": 0.5}),
            "using must be whole numbers of at least 0",
        ),
        (lambda book: ask(book, "a", nodes={"n": -1}), "slots of nodes must be whole numbers"),
        (lambda book: ask(book, "a", math.inf), "now must be a number of seconds"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[LeaseBook], Any], problem: str) -> None:
    book = LeaseBook()
    with pytest.raises(InvalidInput, match=problem):
        call(book)
    assert book.statistics().groups == ()
