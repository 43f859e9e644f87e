"""The scheduler as a state machine: what it promises, over random clusters and fates."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.routing.retry import Failure
from aiosollol.core.scheduling.batch_nodes import Chunk
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.dispatcher import Cancel, ScheduleOptions, Send
from aiosollol.core.scheduling.state_machine import BatchState
from aiosollol.errors import BadRequest, NodeUnreachable, RunnerFailed, ServerBusy
from benchmarks.simulator import Outcome, SimNode, Simulation, lower_bound

KNOWN = Cost(overhead=0.001, seconds_per_token=0.001, observations=5, reach=1000.0)

fates = st.one_of(
    st.just(()),
    st.tuples(st.tuples(st.floats(0.0, 2.0), st.floats(0.1, 10.0))),
    st.tuples(st.tuples(st.floats(0.0, 2.0), st.just("die"))),
    st.tuples(st.tuples(st.floats(0.0, 2.0), st.just("sick"))),
    st.tuples(
        st.tuples(st.floats(0.0, 1.0), st.just("die")),
        st.tuples(st.floats(1.0, 2.0), st.just("return")),
    ),
)


@st.composite
def clusters(draw: st.DrawFn) -> list[SimNode]:
    return [
        SimNode(
            f"n{index}",
            overhead=draw(st.floats(0.0, 0.02)),
            per_item=draw(st.floats(0.0005, 0.1)),
            per_token=draw(st.floats(0.0, 0.0005)),
            noise=draw(st.sampled_from([0.0, 0.05, 0.5])),
            window=draw(st.integers(1, 3)),
            fate=draw(fates),
        )
        for index in range(draw(st.integers(1, 8)))
    ]


sizes = st.lists(st.floats(2.0, 2000.0), min_size=1, max_size=120)


def check_promises(outcome: Outcome, nodes: list[SimNode], tokens: list[float]) -> None:
    state = outcome.state
    for item in range(len(tokens)):
        has_answer = outcome.answered[item] >= 1
        assert has_answer != (item in state.errors), f"item {item}: neither or both"
    for node in nodes:
        assert outcome.most_in_flight[node.name] <= node.window
    assert sum(tally.items for tally in state.tallies.values()) == len(tokens) - len(state.errors)
    assert state.done_count == len(tokens)
    assert state.next_tick(outcome.seconds) is None


@settings(max_examples=200, deadline=None)
@given(nodes=clusters(), tokens=sizes, seed=st.integers(0, 1000), data=st.data())
def test_every_item_is_answered_once_or_reported(
    nodes: list[SimNode], tokens: list[float], seed: int, data: st.DataObject
) -> None:
    poison = data.draw(st.sets(st.integers(0, len(tokens) - 1), max_size=3))
    outcome = Simulation(nodes, tokens, poison=poison, seed=seed).run(max_events=100_000)
    check_promises(outcome, nodes, tokens)


@settings(max_examples=100, deadline=None)
@given(nodes=clusters(), tokens=sizes)
def test_without_faults_no_item_fails_and_work_is_items_plus_copies(
    nodes: list[SimNode], tokens: list[float]
) -> None:
    for node in nodes:
        node.fate = ()
    outcome = Simulation(nodes, tokens).run(max_events=100_000)
    check_promises(outcome, nodes, tokens)
    assert not outcome.state.errors
    # Each item is copied at most once.
    assert outcome.sent_items <= 2 * len(tokens)
    if not outcome.state.copies:
        assert outcome.sent_items == len(tokens)


@settings(max_examples=60, deadline=None)
@given(tokens=sizes, healthy=st.integers(1, 3), data=st.data())
def test_while_one_node_is_healthy_only_poison_fails(
    tokens: list[float], healthy: int, data: st.DataObject
) -> None:
    poison = data.draw(st.sets(st.integers(0, len(tokens) - 1), max_size=3))
    nodes = [SimNode(f"good{index}", per_item=0.01) for index in range(healthy)]
    nodes += [
        SimNode("dying", per_item=0.01, fate=[(data.draw(st.floats(0, 1)), "die")]),
        SimNode("sick", per_item=0.01, fate=[(data.draw(st.floats(0, 1)), "sick")]),
    ]
    outcome = Simulation(nodes, tokens, poison=poison).run(max_events=100_000)
    check_promises(outcome, nodes, tokens)
    assert set(outcome.state.errors) == poison


@settings(max_examples=60, deadline=None)
@given(tokens=sizes, count=st.integers(1, 4), data=st.data())
def test_after_an_outage_of_all_nodes_only_poison_has_failed(
    tokens: list[float], count: int, data: st.DataObject
) -> None:
    poison = data.draw(st.sets(st.integers(0, len(tokens) - 1), max_size=3))
    begins = data.draw(st.floats(0.0, 1.0))
    ends = begins + data.draw(st.floats(0.01, 30.0))
    nodes = [
        SimNode(f"n{index}", per_item=0.01, fate=[(begins, "sick"), (ends, "return")])
        for index in range(count)
    ]
    outcome = Simulation(nodes, tokens, poison=poison).run(max_events=100_000)
    check_promises(outcome, nodes, tokens)
    assert set(outcome.state.errors) == poison


def warm(nodes: list[SimNode], tokens: list[float], **options: object) -> Outcome:
    """The third batch, when every node is known."""
    costs: dict[str, Cost] = {}
    for _ in range(2):
        costs = Simulation(nodes, tokens, costs=costs).run().costs
    return Simulation(nodes, tokens, costs=costs).run()


@pytest.mark.parametrize(
    ("milliseconds", "count"),
    [((10, 100, 100), 200), ((10, 12, 11), 1000), ((10, 10, 100, 100, 100), 500)],
)
def test_unequal_nodes_finish_close_to_the_lower_bound(
    milliseconds: tuple[int, ...], count: int
) -> None:
    nodes = [SimNode(f"n{i}", per_item=ms / 1000) for i, ms in enumerate(milliseconds)]
    tokens = [14.0] * count
    bound = lower_bound(nodes, tokens)
    assert Simulation(nodes, tokens).run().seconds <= 1.10 * bound
    assert warm(nodes, tokens).seconds <= 1.04 * bound


def test_a_dying_node_costs_little_more_than_its_chunks() -> None:
    tokens = [14.0] * 600
    sound = [SimNode(f"n{i}", per_item=0.01) for i in range(3)]
    costs = warm(sound, tokens).costs
    nodes = [*sound[:2], SimNode("n2", per_item=0.01, fate=[(1.0, "die")])]
    outcome = Simulation(nodes, tokens, costs=costs).run()
    # One second of three nodes, then two: 600 = 300 + 200 x t, so 2.5 s, and a chunk on top.
    assert outcome.seconds <= 2.5 + 0.5
    assert not outcome.state.errors


def two_nodes(tokens: list[float], **options: int) -> tuple[BatchState, list[Chunk]]:
    state = BatchState(tokens, ScheduleOptions(**options))
    state.node_up("a", KNOWN, 0.0)
    state.node_up("b", KNOWN, 0.0)
    return state, sent(state.start(0.0))


def sent(instructions: list[Send | Cancel]) -> list[Chunk]:
    return [each.chunk for each in instructions if isinstance(each, Send)]


def test_a_chunk_that_fails_for_its_input_is_split_until_the_culprit_is_alone() -> None:
    state = BatchState([10.0] * 64)
    state.node_up("a", KNOWN, 0.0, window=1)
    error = BadRequest("a", 400, "the input length exceeds the context length")
    queue, sizes = sent(state.start(0.0)), []
    while queue:
        chunk = queue.pop()
        sizes.append(len(chunk.items))
        if 5 in chunk.items:
            queue += sent(state.failed(chunk, 1.0, Failure.INPUT, error))
        else:
            queue += sent(state.done(chunk, 1.0, KNOWN))
    assert state.is_finished
    assert state.errors == {5: error}
    assert state.failures.splits >= 2
    assert len(sizes) < 30, "halving needs few requests"


def test_a_failed_chunk_goes_to_the_other_node_first() -> None:
    state, chunks = two_nodes([10.0] * 100)
    failed = next(chunk for chunk in chunks if chunk.node == "a")
    error = RunnerFailed("a", 500, "gone")
    for chunk in chunks:
        if chunk.node == "b":
            continue
        again = sent(state.failed(chunk, 0.1, Failure.ANSWER, error))
        assert not any(set(each.items) & set(failed.items) for each in again if each.node == "a")


def test_a_busy_node_is_asked_again_after_a_pause_and_not_before() -> None:
    state = BatchState([10.0])
    state.node_up("a", KNOWN, 0.0)
    (chunk,) = sent(state.start(0.0))
    busy = ServerBusy("a", 503, "server busy, please try again")
    assert sent(state.failed(chunk, 1.0, Failure.BUSY, busy)) == []
    assert state.next_tick(1.0) == 1.05
    assert sent(state.tick(1.02)) == []
    (again,) = sent(state.tick(1.05))
    state.done(again, 2.0, KNOWN)
    assert state.is_finished
    assert not state.errors


def test_a_pause_that_was_overslept_is_over_at_once() -> None:
    state = BatchState([10.0])
    state.node_up("a", KNOWN, 0.0)
    (chunk,) = sent(state.start(0.0))
    state.failed(chunk, 1.0, Failure.BUSY, ServerBusy("a", 503, "server busy"))
    assert state.next_tick(9.0) == 9.0
    assert sent(state.tick(9.0))


def test_a_standby_gets_work_only_when_all_others_are_lost() -> None:
    state = BatchState([10.0] * 50)
    state.node_up("main", KNOWN, 0.0)
    state.node_up("spare", KNOWN, 0.0, standby=True)
    chunks = sent(state.start(0.0))
    assert {chunk.node for chunk in chunks} == {"main"}
    gone = NodeUnreachable("main", "refused")
    rescue = [
        each for chunk in chunks for each in sent(state.failed(chunk, 1.0, Failure.NODE, gone))
    ]
    assert {chunk.node for chunk in rescue} == {"spare"}


def test_those_who_stand_by_join_when_the_plan_turns_out_wrong() -> None:
    state = BatchState([10.0] * 500, expected_seconds=1.0)
    state.node_up("main", KNOWN, 0.0)
    state.node_up("spare", KNOWN, 0.0, standby=True)
    first, *_ = sent(state.start(0.0))
    slow = Cost(overhead=0.001, seconds_per_token=0.1, observations=6, reach=1000.0)
    joined = sent(state.done(first, 0.5, slow))
    assert "spare" in {chunk.node for chunk in joined}


def test_an_idle_node_copies_what_another_is_late_with_and_the_loser_is_cancelled() -> None:
    state, chunks = two_nodes([10.0] * 20)
    quick = [chunk for chunk in chunks if chunk.node == "a"]
    pending = [chunk for chunk in chunks if chunk.node == "b"]  # is never answered
    cancelled: list[Chunk] = []
    now = 0.0
    while not state.is_finished:
        if not quick:
            now = state.next_tick(now) or pytest.fail("nothing to wait for")
            quick = sent(state.tick(now))
            continue
        now += 0.001
        for each in state.done(quick.pop(0), now, KNOWN):
            assert each.chunk.node == ("a" if isinstance(each, Send) else "b")
            (quick if isinstance(each, Send) else cancelled).append(each.chunk)
    assert {chunk.id for chunk in cancelled} == {chunk.id for chunk in pending}
    assert state.copies >= 1


def test_long_texts_go_first() -> None:
    tokens = [float(size) for size in range(2, 200)]
    _, chunks = two_nodes(tokens)
    first = {item for chunk in chunks for item in chunk.items}
    assert min(tokens[item] for item in first) > max(
        tokens[item] for item in range(len(tokens)) if item not in first
    )


def test_while_no_node_answers_only_checks_are_sent_and_nothing_is_given_up() -> None:
    state = BatchState([10.0] * 5)
    state.node_up("a", KNOWN, 0.0)
    error = NodeUnreachable("a", "refused")
    chunks = sent(state.start(0.0))
    now, moments = 1.0, []
    while now < 20.0:
        for chunk in chunks:
            state.failed(chunk, now, Failure.NODE, error)
        now = state.next_tick(now) or pytest.fail("nothing to wait for")
        chunks = sent(state.tick(now))
        moments.append(now)
        if len(moments) > 1:
            assert all(chunk.is_check for chunk in chunks)
            assert state.silent_since == 1.0
    pauses = [later - sooner for sooner, later in itertools.pairwise(moments)]
    assert max(pauses) == pytest.approx(0.4)
    (check,) = chunks
    (chunk, *_) = sent(state.done(check, now, KNOWN))
    assert state.silent_since is None
    assert chunk.items
    state.abandon(error, now)
    assert state.is_finished
    assert state.errors == dict.fromkeys(range(5), error)


def test_chunks_obey_their_bounds() -> None:
    fast = Cost(overhead=0.0, seconds_per_token=1e-7, observations=9, reach=1e6)
    state = BatchState([100.0] * 5000, ScheduleOptions(max_items=64, max_tokens=5000))
    state.node_up("a", fast, 0.0)
    for chunk in sent(state.start(0.0)):
        assert len(chunk.items) <= 50
        assert chunk.tokens <= 5000
