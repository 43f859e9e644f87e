"""Ray's engine without Ray: its partitions, its workers' greetings, and its coordinator."""

from __future__ import annotations

import itertools

import pytest

from aiosollol import OllamaPool, __version__
from aiosollol.core.leasing.protocol import MemberReport, NodeUse
from aiosollol.core.offload.partitions import PendingPartition, PendingPartitions
from aiosollol.engines.ray.coordinator import CoordinatorActor, check, is_replaceable
from aiosollol.engines.ray.engine import fit_workers
from aiosollol.engines.ray.protocol import Greeting
from aiosollol.errors import EngineError, MissingExtra

pytestmark = pytest.mark.anyio
NUMBERS = itertools.count()


def parcels(count: int, most_tries: int = 2) -> PendingPartitions:
    return PendingPartitions(iter([range(n, n + 1) for n in range(count)]), most_tries)


def take(waiting: PendingPartitions) -> PendingPartition | None:
    """What a new worker with room for one is given."""
    given = waiting.give({f"w{next(NUMBERS)}": 1})
    return given[0] if given else None


def test_partitions_go_out_in_order_and_lost_ones_first() -> None:
    waiting = parcels(3)
    first, second = take(waiting), take(waiting)
    assert first is not None
    assert second is not None
    assert (first.index, first.items, second.index) == (0, range(1), 1)
    assert waiting.lost(first)
    assert take(waiting) is first
    third = take(waiting)
    assert third is not None
    assert third.index == 2
    assert take(waiting) is None


def test_a_partition_that_kills_its_workers_is_given_up() -> None:
    waiting = parcels(1)
    first = take(waiting)
    assert first is not None
    assert waiting.lost(first)
    assert take(waiting) is first
    assert not waiting.lost(first)
    assert take(waiting) is None
    assert list(waiting.left()) == []


def test_what_is_left_is_what_is_out_what_was_lost_and_what_never_went() -> None:
    waiting = parcels(4)
    first, second, third = (take(waiting) for _ in range(3))
    assert first is not None
    assert second is not None
    waiting.settle(first)
    waiting.lost(second)
    assert list(waiting.left()) == [range(2, 3), range(1, 2), range(3, 4)]
    del third


def greeting(up: tuple[str, ...] = ("n",), version: str = __version__) -> Greeting:
    return Greeting("w", version, up, {} if up else {"n": "refused (http://127.0.0.1:1)"})


def test_all_workers_that_reach_a_node_are_used(caplog: pytest.LogCaptureFixture) -> None:
    assert fit_workers([greeting(), greeting()]) == (0, 1)
    assert not caplog.records
    assert fit_workers([greeting(()), greeting()]) == (1,)
    assert "1 of 2 workers reach no node" in caplog.text


@pytest.mark.parametrize(
    ("greetings", "words"),
    [
        ([greeting(()), greeting(())], ["127.0.0.1 is the worker's own", "refused"]),
        ([greeting(), greeting(version="0.0.1")], ["0.0.1", __version__, "install one version"]),
    ],
)
def test_workers_that_cannot_be_used_are_an_error_that_says_what_to_do(
    greetings: list[Greeting], words: list[str]
) -> None:
    with pytest.raises(EngineError) as caught:
        fit_workers(greetings)
    for word in words:
        assert word in str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosollol.pool.bootstrap.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"\[ray\]"):
        OllamaPool(["10.0.0.1"], enable_ray=True)


def test_the_actor_answers_and_tells_versions_apart() -> None:
    actor = CoordinatorActor()
    told = MemberReport("a", "", 1.0, 0, {"n": NodeUse(2)}).dump()
    answer = check(actor.exchange(told))
    assert answer["slots"] == {"n": 2}
    assert answer["version"] == __version__
    old = actor.exchange({**told, "protocol": 99})
    assert not is_replaceable(old)  # `a` needs it
    actor.leave("a")
    foreign = {**actor.exchange({**told, "protocol": 99}), "protocol": 99, "version": "9.9.9"}
    assert is_replaceable(foreign)
    with pytest.raises(EngineError, match=r"aiosollol 9\.9\.9.*use one version"):
        check(foreign)
    with pytest.raises(EngineError, match="refused our report"):
        check(actor.exchange({**told, "weight": -1.0}))
