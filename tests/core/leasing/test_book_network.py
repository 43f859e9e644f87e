"""Leases among members on a network that loses, delays and reorders: no slot twice."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from lease_parts import TERM, TURN

from aiosollol.core.leasing.book import Lease, LeaseBook


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
