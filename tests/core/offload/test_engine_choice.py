"""Which engine carries a batch, in what partitions; pure."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.offload.engine_choice import (
    PARTITION_SECONDS,
    EngineOffer,
    EngineOutcome,
    check_engine,
    choose,
    partitions,
)
from aiosollol.core.report import BatchReport, EngineNote, NodeShare
from aiosollol.core.stats import NodeCounters
from aiosollol.errors import EngineError, InvalidInput, NodeTimeout

DASK = EngineOffer("dask", 4.0, 1000)
RUNNING = EngineOffer("dask", 0.0, 1000)
RAY = EngineOffer("ray", 0.0, 0, is_automatic=False)

CHOICES = [
    ("nothing is turned on", "auto", [], 10**6, 900.0, "local", ""),
    ("too few", "auto", [DASK], 999, 900.0, "local", "999 items, fewer than the 1000 for dask"),
    ("enough", "auto", [DASK], 1000, 900.0, "dask", "1000 items, at least 1000"),
    ("over before it starts", "auto", [DASK], 5000, 3.9, "local", "less than the 4.0 s"),
    ("it runs already", "auto", [RUNNING], 5000, 0.1, "dask", "5000 items"),
    ("as fast as this process", "auto", [RUNNING._replace(pace=1.0)], 5000, 9.0, "dask", "5000"),
    ("faster", "auto", [RUNNING._replace(pace=0.6)], 5000, 9.0, "dask", "5000 items"),
    ("slower", "auto", [RUNNING._replace(pace=1.4)], 5000, 9.0, "local", "dask took 1.40 times"),
    ("slower, asked for", "dask", [RUNNING._replace(pace=9.0)], 1, 9.0, "dask", "requested"),
    ("ray is for sharing", "auto", [RAY], 5000, 900.0, "local", ""),
    ("both", "auto", [RAY, RUNNING], 5000, 900.0, "dask", "5000 items"),
    ("ray, asked for", "ray", [RAY, RUNNING], 1, 0.0, "ray", "requested"),
    ("dask, asked for", "dask", [DASK], 1, 0.0, "dask", "requested"),
    ("here, asked for", "local", [RUNNING], 10**6, 900.0, "local", "requested"),
]


@pytest.mark.parametrize(
    ("wanted", "offers", "items", "seconds", "name", "reason"),
    [case[1:] for case in CHOICES],
    ids=[case[0] for case in CHOICES],
)
def test_an_engine_is_chosen_for_what_is_worth_it(
    wanted: str, offers: list[EngineOffer], items: int, seconds: float, name: str, reason: str
) -> None:
    chosen = choose(wanted, offers, items, seconds)
    assert chosen.name == name
    assert reason in chosen.reason


def test_an_engine_that_is_not_turned_on_says_how_to() -> None:
    with pytest.raises(EngineError, match=r"enable_dask=True") as caught:
        choose("dask", [RAY], 10, 1.0)
    assert caught.value.engine == "dask"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("name", ["spark", "", None, 3])
def test_what_is_no_engine_is_told(name: object) -> None:
    with pytest.raises(InvalidInput, match="engine must be one of 'auto', 'local', 'dask', 'ray'"):
        check_engine(name)


@given(
    tokens=st.lists(st.floats(1.0, 500.0), max_size=400),
    seconds=st.floats(0.0, 1e5),
    workers=st.integers(0, 64),
)
def test_partitions_have_every_position_once_and_in_order(
    tokens: list[float], seconds: float, workers: int
) -> None:
    texts = ["x"] * len(tokens)
    parts = list(partitions(texts, tokens, seconds, workers))
    assert [item for part in parts for item in part] == list(range(len(tokens)))
    assert all(parts)


def test_partitions_are_as_long_as_they_should_be() -> None:
    count = 10_000
    parts = list(partitions(["x"] * count, [10.0] * count, 20 * PARTITION_SECONDS, 2))
    assert 40 <= len(parts) <= 41
    assert max(map(len, parts)) <= 256


def test_every_worker_has_at_least_two_however_short_the_batch_is() -> None:
    assert len(list(partitions(["x"] * 1000, [10.0] * 1000, 0.01, 4))) in (8, 9)
    # ... but a partition of a few texts is not worth its way.
    assert len(list(partitions(["x"] * 40, [10.0] * 40, 100.0, 4))) <= 2


def test_long_texts_do_not_make_a_partition_that_no_scheduler_would_like() -> None:
    texts = ["x" * 3_000_000] * 5
    parts = list(partitions(texts, [750_000.0] * 5, 0.1, 1))
    assert [len(part) for part in parts] == [1] * 5


def test_an_outcome_adds_up() -> None:
    outcome = EngineOutcome(dashboard="http://127.0.0.1:8787")
    share = NodeShare(items=10, requests=2, tokens=100, seconds=1.0, idle=0.5, wasted=0.1)
    timeout = NodeTimeout("a", "took too long")
    for start, worker in ((0, "w1"), (10, "w2"), (20, "w1")):
        counters = NodeCounters(succeeded=2, vectors=10, latency=0.5, failed=1)
        outcome.add(start, {"a": share}, {"a": counters}, {3: timeout}, worker)
    assert outcome.nodes["a"].items == 30
    assert outcome.nodes["a"].seconds == 3.0
    assert outcome.counters["a"] == NodeCounters(6, 3, vectors=30, latency=0.5)
    assert outcome.errors == dict.fromkeys((3, 13, 23), timeout)
    note = outcome.note(EngineNote("dask", "requested"))
    assert note == EngineNote("dask", "requested", 2, 0, "http://127.0.0.1:8787")
    assert "(dask, 2 workers)" in str(BatchReport(30, 30, 3.0, engine=note))


def test_merged_counters_are_those_of_one_who_counted_all() -> None:
    mine, theirs = NodeCounters(1, latency=1.0), NodeCounters(3, 2, 1, 4, 9, 7, 3.0)
    mine.merge(theirs)
    assert mine == NodeCounters(4, 2, 1, 4, 9, 7, 2.5)
    idle = NodeCounters()
    idle.merge(NodeCounters())
    assert idle == NodeCounters()
