"""Slots of nodes leased to members: none twice, all in use, shared by weight."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from aiosollol.core.division import water
from aiosollol.core.leases import Lease, LeaseBook
from aiosollol.errors import InvalidInput

TERM, TURN, INTERVAL = 10.0, 2.0, 0.5

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


def ask(
    book: LeaseBook,
    member: str,
    now: float = 0.0,
    *,
    serial: int = 0,
    wants: Mapping[str, int] | None = None,
    using: Mapping[str, int] | None = None,
    **more: Any,
) -> Lease:
    return book.ask(member, wants=wants or {}, using=using or {}, serial=serial, now=now, **more)


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
        (lambda book: ask(book, "a", wants={"n": -1}), "wants must be whole numbers from 0 on"),
        (lambda book: ask(book, "a", using={"n": 0.5}), "using must be whole numbers from 0 on"),
        (lambda book: ask(book, "a", nodes={"n": -1}), "slots of nodes must be whole numbers"),
        (lambda book: ask(book, "a", math.inf), "now must be a number of seconds"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[LeaseBook], Any], problem: str) -> None:
    book = LeaseBook()
    with pytest.raises(InvalidInput, match=problem):
        call(book)
    assert book.statistics().groups == ()


# --- members on a network that loses, delays and reorders ---------------------------------------


@dataclass
class Actor:
    """A member as `leases` asks it to be. applied: the lease it goes by, ended at `until`."""

    applied: Lease = field(default_factory=lambda: Lease({}, 0.0, 0))
    until: float = -math.inf
    using: dict[str, int] = field(default_factory=dict)
    life: int = 0


@dataclass
class Question:
    actor: str
    life: int
    sent_at: float
    wants: dict[str, int]
    using: dict[str, int]
    serial: int


ACTORS = st.sampled_from(["a", "b", "c", "d"])
NODES = ["n1", "n2", "n3"]
COUNTS = st.dictionaries(st.sampled_from(NODES), st.integers(0, 5))


class Network(RuleBasedStateMachine):
    """What members may have under way together never grows beyond what a node takes."""

    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook(term=TERM, turn=TURN)
        self.now = 0.0
        self.slots: dict[str, int] = {}
        self.most: dict[str, int] = {}  # by node, what may be under way before anything happens
        self.actors = {name: Actor() for name in "abcd"}
        self.questions: list[Question] = []
        self.answers: list[tuple[Question, Lease]] = []

    def may_use(self, node: str) -> int:
        """The most that can be under way there if nobody is asked anything more."""
        total = 0
        for name, actor in self.actors.items():
            if self.now >= actor.until:
                most = 0
            else:
                most = max(actor.applied.slots.get(node, 0), actor.using.get(node, 0))
            for question, lease in self.answers:
                if self.is_good(name, question, lease):
                    most = max(most, lease.slots.get(node, 0))
            total += most
        return total

    def is_good(self, name: str, question: Question, lease: Lease) -> bool:
        actor = self.actors[name]
        return (
            (question.actor, question.life) == (name, actor.life)
            and lease.serial > actor.applied.serial
            and self.now < question.sent_at + TERM
        )

    @initialize(slots=st.dictionaries(st.sampled_from(NODES), st.integers(0, 4), min_size=1))
    def begin(self, slots: dict[str, int]) -> None:
        self.nodes(slots)

    @rule(slots=st.dictionaries(st.sampled_from(NODES), st.integers(0, 4)))
    def nodes(self, slots: dict[str, int]) -> None:
        self.slots = slots
        self.book.set_nodes(slots, self.now)
        self.most = {node: self.may_use(node) for node in slots}

    @rule(name=ACTORS, waiting=COUNTS, lie=COUNTS)
    def send(self, name: str, waiting: dict[str, int], lie: dict[str, int]) -> None:
        actor = self.actors[name]
        using = {node: actor.using.get(node, 0) + lie.get(node, 0) // 4 for node in NODES}
        wants = {node: using[node] + waiting.get(node, 0) for node in NODES}
        serial = actor.applied.serial
        self.questions.append(Question(name, actor.life, self.now, wants, using, serial))

    @rule(data=st.data(), keep=st.booleans())
    @precondition(lambda self: self.questions)
    def arrive(self, data: st.DataObject, keep: bool) -> None:
        at = data.draw(st.integers(0, len(self.questions) - 1))
        question = self.questions[at] if keep else self.questions.pop(at)
        self.answers.append((question, self.put(question)))

    def put(self, question: Question) -> Lease:
        return self.book.ask(
            question.actor,
            group="pair" if question.actor in "cd" else "",
            weight=3.0 if question.actor == "a" else 1.0,
            wants=question.wants,
            using=question.using,
            serial=question.serial,
            now=self.now,
        )

    @rule(data=st.data(), is_lost=st.booleans())
    @precondition(lambda self: self.answers)
    def apply(self, data: st.DataObject, is_lost: bool) -> None:
        at = data.draw(st.integers(0, len(self.answers) - 1))
        self.obey(*self.answers.pop(at)) if not is_lost else self.answers.pop(at)

    def obey(self, question: Question, lease: Lease) -> None:
        actor = self.actors[question.actor]
        if self.is_good(question.actor, question, lease):
            actor.applied, actor.until = lease, max(actor.until, question.sent_at + TERM)

    @rule(name=ACTORS, node=st.sampled_from(NODES), count=st.integers(1, 4))
    def start(self, name: str, node: str, count: int) -> None:
        actor = self.actors[name]
        has = actor.using.get(node, 0)
        if self.now < actor.until:
            actor.using[node] = max(has, min(has + count, actor.applied.slots.get(node, 0)))

    @rule(name=ACTORS, node=st.sampled_from(NODES))
    def finish(self, name: str, node: str) -> None:
        using = self.actors[name].using
        using[node] = max(0, using.get(node, 0) - 1)

    @rule(name=ACTORS)
    def die(self, name: str) -> None:
        """And come back, knowing nothing. Its questions may still be on their way."""
        self.actors[name] = Actor(life=self.actors[name].life + 1)

    @rule(name=ACTORS)
    def leave(self, name: str) -> None:
        self.questions = [each for each in self.questions if each.actor != name]
        self.answers = [each for each in self.answers if each[0].actor != name]
        self.die(name)
        self.book.leave(name, self.now)

    @rule(seconds=st.sampled_from([0.01, 0.5, TURN, 4.0, TERM + 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for actor in self.actors.values():
            if self.now >= actor.until:
                actor.using.clear()  # it gives up what outlives its lease

    @rule()
    def expire(self) -> None:
        self.book.expire(self.now)

    @invariant()
    def no_slot_is_given_twice(self) -> None:
        for node, slots in self.slots.items():
            may_use = self.may_use(node)
            assert may_use <= max(slots, self.most[node]), node
            self.most[node] = may_use
        for name, node in self.book.statistics().nodes.items():
            held = sum(each.held for each in node.members.values())
            assert node.free == self.slots[name] - held
            targets = sum(each.target for each in node.members.values())
            wants = sum(min(each.wants, node.capacity) for each in node.members.values())
            assert targets == min(node.capacity, wants)

    def teardown(self) -> None:
        """When all is calm again nothing is lost: what is wanted is leased, up to the last slot."""
        self.now += TERM + 1.0
        self.questions, self.answers = [], []
        for actor in self.actors.values():
            actor.using.clear()
        for _ in range(6):
            for name, actor in self.actors.items():
                wants = dict.fromkeys(NODES, 2)
                question = Question(name, actor.life, self.now, wants, {}, actor.applied.serial)
                self.obey(question, self.put(question))
        for node, slots in self.slots.items():
            leased = [actor.applied.slots[node] for actor in self.actors.values()]
            assert sum(leased) == slots
            assert slots < 8 or leased == [2, 2, 2, 2]


TestNetwork = Network.TestCase
TestNetwork.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)


# --- hours of work in virtual time ----------------------------------------------------------------


@dataclass(eq=False)
class Worker:
    """A member that obeys, with requests of random lengths on `nodes`. busy: slot-seconds."""

    name: str
    nodes: list[str]
    group: str = ""
    weight: float = 1.0
    seconds: tuple[float, float] = (0.02, 0.08)
    is_wanting: bool = True
    is_alive: bool = True
    lease: Lease = field(default_factory=lambda: Lease({}, 0.0, 0))
    using: dict[str, int] = field(default_factory=dict)
    began_at: list[float] = field(default_factory=list)
    busy: float = 0.0
    done: int = 0


class World:
    """Workers that ask a book every half second, and at once when the book has to know."""

    def __init__(self, slots: dict[str, int], workers: list[Worker], seed: int = 0) -> None:
        self.slots, self.workers, self.now = slots, workers, 0.0
        self.book = LeaseBook(term=TERM, turn=TURN)
        self.book.set_nodes(slots, 0.0)
        self._rng, self._order = Random(seed), itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for worker in workers:
            self._later(self._rng.uniform(0.0, INTERVAL), partial(self._poll, worker))

    def run(self, until: float) -> None:
        while self._events[0][0] <= until:
            self.now, _, act = heappop(self._events)
            act()
        self.now = until

    def under_way(self, node: str) -> int:
        return sum(each.using.get(node, 0) for each in self.workers if each.is_alive)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        heappush(self._events, (self.now + seconds, next(self._order), act))

    def _poll(self, worker: Worker) -> None:
        self._ask(worker)
        self._later(INTERVAL, partial(self._poll, worker))

    def _ask(self, worker: Worker) -> None:
        if not worker.is_alive:
            return
        more = 9 if worker.is_wanting else 0
        before, worker.lease = (
            worker.lease,
            ask(
                self.book,
                worker.name,
                self.now,
                group=worker.group,
                weight=worker.weight,
                wants={node: worker.using.get(node, 0) + more for node in worker.nodes},
                using=worker.using,
                serial=worker.lease.serial,
            ),
        )
        if any(worker.lease.slots[node] < count for node, count in before.slots.items()):
            self._later(0.0, partial(self._ask, worker))
        self._begin(worker)

    def _begin(self, worker: Worker) -> None:
        if not worker.is_wanting:
            return
        for node in worker.nodes:
            while worker.using.get(node, 0) < worker.lease.slots[node]:
                worker.using[node] = worker.using.get(node, 0) + 1
                worker.began_at.append(self.now)
                seconds = self._rng.uniform(*worker.seconds)
                self._later(seconds, partial(self._end, worker, node, seconds))
            assert self.under_way(node) <= self.slots[node]

    def _end(self, worker: Worker, node: str, seconds: float) -> None:
        if not worker.is_alive:
            return
        is_too_much = worker.using[node] > worker.lease.slots[node]
        worker.using[node] -= 1
        worker.busy += seconds
        worker.done += 1
        self._begin(worker)
        if is_too_much:
            self._ask(worker)


def nodes(count: int, slots: int) -> dict[str, int]:
    return {f"n{at}": slots for at in range(count)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slots", [nodes(4, 2), nodes(1, 2), nodes(3, 1)], ids=str)
def test_slots_are_shared_by_weight(slots: dict[str, int], seed: int) -> None:
    """Of slot-seconds and of requests that ended, to 5 %; after a minute also to a slot's turn."""
    weights = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0}
    workers = [Worker(name, list(slots), weight=weight) for name, weight in weights.items()]
    world = World(slots, workers, seed)
    for minutes in (1, 3):
        world.run(60.0 * minutes)
        busy, done = sum(each.busy for each in workers), sum(each.done for each in workers)
        assert busy > 0.9 * 60.0 * minutes * sum(slots.values())
        for worker in workers:
            share = worker.weight / sum(weights.values())
            slack = 0.05 if minutes > 1 else max(0.05, TURN / (share * busy))
            assert worker.busy / busy == pytest.approx(share, rel=slack)
            assert worker.done / done == pytest.approx(share, rel=slack)


def test_long_requests_count_by_their_length() -> None:
    slots = nodes(1, 2)
    workers = [Worker("a", ["n0"], seconds=(2.0, 6.0)), Worker("b", ["n0"]), Worker("c", ["n0"])]
    world = World(slots, workers)
    world.run(600.0)
    for worker in workers:
        assert worker.busy == pytest.approx(sum(each.busy for each in workers) / 3, rel=0.05)


def test_all_nodes_together_are_shared() -> None:
    """The chain of nodes that two can use: everybody has 1.5 slots per weight, wherever."""
    slots = nodes(3, 3)
    workers = [
        Worker("a", ["n0"]),
        Worker("b", ["n0", "n1"]),
        Worker("c", ["n1", "n2"]),
        Worker("d", ["n2"]),
        Worker("e", ["n0", "n1", "n2"], weight=2.0),
    ]
    world = World(slots, workers)
    world.run(120.0)
    for worker in workers:
        assert worker.busy / worker.weight / 120.0 == pytest.approx(1.5, rel=0.06)
    fair = {group.name: group.fair for group in world.book.statistics().groups}
    assert fair == pytest.approx({"a": 1.5, "b": 1.5, "c": 1.5, "d": 1.5, "e": 3.0}, rel=1e-3)


def test_what_is_lost_on_some_nodes_is_no_debt_of_others() -> None:
    workers = [Worker("a", ["n0"]), Worker("b", ["n0"])]
    workers += [Worker(name, ["n1"]) for name in "cdef"]
    world = World({"n0": 2, "n1": 1}, workers)
    world.run(600.0)
    for group in world.book.statistics().groups:
        assert abs(group.credit) < 2 * TURN


def test_ten_members_of_one_group_have_no_more_than_one_of_another() -> None:
    slots = nodes(2, 2)
    ten = [Worker(f"w{at}", list(slots), group="ten") for at in range(10)]
    one = Worker("one", list(slots), group="one")
    World(slots, [*ten, one]).run(200.0)
    together = sum(each.busy for each in ten)
    assert together / (together + one.busy) == pytest.approx(0.5, rel=0.06)
    for worker in ten:
        assert worker.busy == pytest.approx(together / 10, rel=0.15)


@pytest.mark.parametrize("slots", [nodes(1, 1), nodes(2, 1)], ids=str)
def test_nobody_starves(slots: dict[str, int]) -> None:
    """Eight on one slot, and one of a hundred times their weight: each has its turn."""
    workers = [Worker(f"w{at}", list(slots)) for at in range(8)]
    workers.append(Worker("heavy", list(slots), weight=100.0))
    World(slots, workers).run(1200.0)
    for worker in workers:
        assert worker.done > 0
    even = [Worker(f"w{at}", list(slots)) for at in range(8)]
    World(slots, even).run(120.0)
    for worker in even:  # 8 turns of 2 s, and what moving a slot takes, until it is back
        pauses = [b - a for a, b in pairwise([0.0, *worker.began_at, 120.0])]
        assert max(pauses) < 8 * (TURN + 2 * INTERVAL) + TURN


def test_slots_of_the_dead_are_in_use_within_the_term() -> None:
    slots = nodes(2, 2)
    workers = [Worker(name, list(slots)) for name in "ab"]
    world = World(slots, workers)
    world.run(20.0)
    workers[0].is_alive = False
    world.run(20.0 + TERM + INTERVAL)
    assert [world.under_way(node) for node in slots] == [2, 2]
    assert world.book.expire(world.now) == ["a"]


@pytest.mark.parametrize("seed", range(5))
def test_who_begins_to_want_soon_has_a_slot(seed: int) -> None:
    slots = nodes(2, 2)
    late = Worker("late", list(slots), is_wanting=False)
    others = [Worker(name, list(slots), seconds=(0.2, 1.0)) for name in "abc"]
    world = World(slots, [late, *others], seed)
    world.run(20.0)
    assert {world.under_way(node) for node in slots} == {2}  # the others use its slots
    late.is_wanting = True
    world.run(30.0)
    # It tells that it wants (its own interval), another hears of it and its request ends, and it
    # hears of that (its own interval).
    assert late.began_at[0] < 20.0 + INTERVAL + (INTERVAL + 1.0) + INTERVAL
    world.run(100.0)
    assert late.busy == pytest.approx(80.0, rel=0.06)


def test_an_idle_member_uses_its_slots_in_advance_at_once() -> None:
    slots = nodes(2, 2)
    workers = [Worker(name, list(slots), is_wanting=False) for name in "ab"]
    world = World(slots, workers)
    world.run(5.0)
    assert [sum(each.lease.slots.values()) for each in workers] == [2, 2]


def test_slots_stay_where_they_are_when_that_is_fair() -> None:
    slots = nodes(4, 2)
    workers = [Worker(name, list(slots)) for name in "ab"]
    world = World(slots, workers)
    world.run(20.0)
    before = [dict(each.lease.slots) for each in workers]
    for at in range(100):
        world.run(20.0 + at)
        assert [each.lease.slots for each in workers] == before


def test_a_large_cluster_is_divided_bit_by_bit() -> None:
    """More claims than are looked at for one question: all is divided after a few."""
    slots = nodes(60, 3)
    workers = [Worker(f"w{at}", list(slots), seconds=(50.0, 60.0)) for at in range(20)]
    world = World(slots, workers)
    world.run(20.0)
    assert {world.under_way(node) for node in slots} == {3}
    for group in world.book.statistics().groups:
        assert group.fair == pytest.approx(9.0, rel=0.01)
