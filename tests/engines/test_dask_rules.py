"""What the near and the far end of an engine decide, without either."""

from __future__ import annotations

import pickle
import time

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol import NodeRegistry, NodeSpec
from aiosollol.core.offload.engine_choice import EngineOutcome
from aiosollol.core.offload.partitions import (
    Fitness,
    Partition,
    PartitionResult,
    WorkerState,
    confined,
    failures,
    fitness,
    is_of_worker,
    is_within,
    nobody_fit,
    room,
    taking_part,
)
from aiosollol.core.offload.write_report import WriteReport, file_name, unfinished_name
from aiosollol.core.report import NodeShare
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.core.stats import NodeCounters
from aiosollol.engines import remote_pool
from aiosollol.engines.remote_pool import (
    NodeEntry,
    RemotePool,
    Terms,
    entries_of,
    far_settings,
    follow_nodes,
)
from aiosollol.errors import (
    BadRequest,
    EngineError,
    InvalidInput,
    ModelNotFound,
    NodeTimeout,
    NoNodeAvailable,
    PoolClosed,
    SollolError,
)
from aiosollol.testing import FakeModel, FakeOllama, fake_vector

MODEL = FakeModel("nomic-embed-text", dim=4)
HERE = WorkerState("here", 1, up=frozenset({"a", "b"}))
CUT_OFF = WorkerState("cut off", 1, up=frozenset(), down={"a": "refused", "x": "other"})
BEFORE = WorkerState("before", 1, up=frozenset({"x"}), down={"y": "refused"})
OLD = WorkerState("old", 1, problem="has aiosollol 0")
SILENT = WorkerState("silent", 1)


@pytest.mark.parametrize(
    ("workers", "fit", "unfit", "is_final"),
    [
        ([], [], [], True),
        ([HERE], ["here"], [], True),
        ([HERE, SILENT], ["here"], [], False),
        ([SILENT], [], [], False),
        ([CUT_OFF, OLD], [], ["cut off", "old"], True),
        ([OLD, HERE, CUT_OFF], ["here"], ["old", "cut off"], True),
        ([BEFORE], [], ["before"], False),  # "a" was added after its report
        ([HERE, BEFORE], ["here"], ["before"], False),
    ],
)
def test_who_can_do_a_batch(
    workers: list[WorkerState], fit: list[str], unfit: list[str], is_final: bool
) -> None:
    found = fitness(workers, {"a"})
    assert [each.name for each in found.fit] == fit
    assert list(found.unfit) == unfit
    assert found.is_final is is_final


def test_a_worker_that_reaches_other_nodes_only_is_none() -> None:
    assert not fitness([HERE], {"c"}).fit
    assert fitness([CUT_OFF], {"a"}).unfit["cut off"].endswith("refused")


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ([], "has no worker at tcp://s: start one with: dask worker tcp://s"),
        ([SILENT], "start one with"),
        ([OLD], "has no worker that can do it: worker old has aiosollol 0"),
        ([CUT_OFF], "127.0.0.1 mean the worker's own machine"),
        ([BEFORE], "it has not tried them yet"),
        ([OLD._replace(name=f"old {index}") for index in range(5)], "; and 2 more"),
    ],
)
def test_why_nobody_can(workers: list[WorkerState], words: str) -> None:
    assert words in str(nobody_fit("dask", "tcp://s", fitness(workers, {"a"})))


def test_no_hint_at_addresses_where_they_are_not_at_fault() -> None:
    assert "127.0.0.1" not in str(nobody_fit("dask", "s", Fitness((), {"w": "has x"}, True)))


@pytest.mark.parametrize(
    ("count", "slots", "taken"), [(3, 5, 3), (3, 3, 3), (3, 2, 2), (3, 0, 1), (0, 2, 0)]
)
def test_no_more_workers_than_slots(count: int, slots: int, taken: int) -> None:
    workers = [WorkerState(f"w{index}", 1) for index in range(count)]
    assert len(taking_part(workers, slots)) == taken


@pytest.mark.parametrize(
    ("fit", "unfit", "places"),
    [
        (["tcp://10.0.0.1:1", "tcp://10.0.0.2:1"], [], None),
        (["tcp://10.0.0.1:1", "tcp://10.0.0.1:2"], ["tcp://10.0.0.2:1"], ["10.0.0.1"]),
        (["tcp://10.0.0.1:1"], ["tcp://10.0.0.1:2"], ["tcp://10.0.0.1:1"]),
        (["tls://[fd00::1]:1"], ["tls://[fd00::2]:1"], ["[fd00::1]"]),
    ],
)
def test_where_a_task_may_run(fit: list[str], unfit: list[str], places: list[str] | None) -> None:
    workers = tuple(WorkerState(name, 1) for name in fit)
    found = Fitness(workers, dict.fromkeys(unfit, "is old"), True)
    assert confined(found) == places
    assert all(is_within(name, places) for name in fit)
    assert not any(is_within(name, places) for name in unfit)


@pytest.mark.parametrize(("threads", "partitions"), [(0, 2), (1, 2), (2, 3), (8, 9)])
def test_one_partition_waits_at_each_worker(threads: int, partitions: int) -> None:
    assert room(WorkerState("w", threads)) == partitions


@pytest.mark.parametrize(
    ("error", "is_its"),
    [
        (NoNodeAvailable("", {}), True),
        (ModelNotFound("m", {}), True),
        (PoolClosed(""), True),
        (EngineError("dask", ""), True),
        (BadRequest("n", 400, ""), False),
        (InvalidInput(""), False),
        (NodeTimeout("n", ""), False),
    ],
)
def test_what_another_worker_may_do_better(error: SollolError, is_its: bool) -> None:
    assert is_of_worker(error) is is_its


def test_what_is_missing_has_failed() -> None:
    outcome, error = EngineOutcome(), EngineError("dask", "x")
    failures(outcome, [range(2, 4), range(7, 8)], error)
    assert outcome.errors == {2: error, 3: error, 7: error}


def test_names_of_files() -> None:
    assert file_name(7) == "part-00007.parquet"
    assert file_name(123456) == "part-123456.parquet"
    assert unfinished_name(7, "abc") == ".part-00007.parquet.abc"


def test_a_report_says_it_in_a_line() -> None:
    report = WriteReport("/d", ("a", "b"), 10, 1, 2.0, 4, {"n": NodeShare(items=9)})
    assert str(report) == "10 rows, 1 without a vector in 2.00 s (5/s), 2 files in /d: n 9"


# What travels.


@given(st.binary(max_size=64).map(lambda data: data[: len(data) // 8 * 8]))
def test_vectors_travel_out_of_band(data: bytes) -> None:
    errors = {0: InvalidInput("bad", index=0)} if data else {}
    result = PartitionResult(data, 2, len(data) // 8, "w", errors, {"n": NodeShare(items=1)})
    buffers: list[pickle.PickleBuffer] = []
    small = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    assert [bytes(each.raw()) for each in buffers] == [data]
    for again in (pickle.loads(small, buffers=buffers), pickle.loads(pickle.dumps(result, 4))):
        assert again.embeddings.tobytes() == data
        assert list(again.errors) == list(errors)
        assert again.nodes == result.nodes
        assert again.worker == "w"


def test_terms_travel() -> None:
    spec = NodeSpec("http://10.0.0.2", name="n", headers={"a": "b"}, max_concurrency=3)
    terms = Terms((NodeEntry(spec, True, frozenset({"m"})),), {"n": 1}, 2, 3)
    assert pickle.loads(pickle.dumps(terms)) == terms
    partition = Partition(1, EmbedSettings(model="m"), ["a"], PlanOptions(), "d")
    assert pickle.loads(pickle.dumps(partition)) == partition


def test_workers_have_the_settings_but_no_engine_and_no_search() -> None:
    settings = far_settings({"embed_timeout": 7.0, "enable_dask": True, "auto_discover": True})
    assert settings["embed_timeout"] == 7.0
    for name in ("enable_dask", "enable_ray", "auto_discover", "watch_network"):
        assert settings[name] is False


# A worker's nodes.


def registry_of(*nodes: NodeSpec) -> NodeRegistry:
    return NodeRegistry(nodes, clock=time.monotonic)


def test_the_nodes_of_a_worker_follow_those_of_its_client() -> None:
    one, two = NodeSpec("http://10.0.0.1", name="one"), NodeSpec("http://10.0.0.2", name="two")
    client, far = registry_of(one, two), registry_of()
    assert follow_nodes(far, entries_of(client))
    assert [node.spec for node in far] == [one, two]
    assert not follow_nodes(far, entries_of(client))
    kept = far["two"]
    client["two"].is_draining = True
    client["two"].distrusted.add("m:latest")
    client.remove("one")
    assert not follow_nodes(far, entries_of(client))
    assert [node.name for node in far] == ["two"]
    assert far["two"] is kept
    assert kept.is_draining
    assert kept.distrusted == {"m:latest"}
    moved = NodeSpec("http://10.0.0.3", name="two")
    assert follow_nodes(far, [NodeEntry(moved)])
    assert far["two"].spec == moved
    assert not far["two"].is_draining


# The far end itself, in this process.


async def far_end(*nodes: FakeOllama) -> tuple[RemotePool, Terms]:
    entries = tuple(NodeEntry(NodeSpec(node.url, name=f"n{i}")) for i, node in enumerate(nodes))
    return RemotePool("w", {}), Terms(entries)


def partition(*texts: str, digest: str | None = None) -> Partition:
    return Partition(0, EmbedSettings(model=MODEL.name), texts, PlanOptions(), digest)


@pytest.mark.anyio
async def test_a_far_end_begins_nothing_without_a_lease() -> None:
    async with FakeOllama(models=[MODEL]) as node:
        end, terms = await far_end(node)
        look = await end.obey(terms)
        assert (look.number, look.serial, look.up) == (1, 0, {"n0"})
        async with anyio.create_task_group() as group:
            results = []

            async def embed() -> None:
                results.append(await end.embed(partition("a", "b", "c")))

            group.start_soon(embed)
            while not (look := await end.obey(Terms())).wants:
                await anyio.lowlevel.checkpoint()
            assert not look.using
            assert node.requests == 0
            # An answer to a look that it never took is none.
            assert (await end.obey(Terms(None, {"n0": 2}, 1, 10_000))).serial == 0
            look = await end.obey(Terms(None, {"n0": 2}, 1, look.number))
            assert look.serial == 1
        (result,) = results
        assert [each.tobytes() for each in result.embeddings] == [
            bytes(fake_vector(MODEL.digest, text, 4)) for text in "abc"
        ]
        assert result.counters["n0"].vectors == 3
        assert (await end.embed(partition("d"))).counters["n0"].vectors == 1
        await end.aclose()
        await end.aclose()


@pytest.mark.anyio
async def test_a_lease_ends_where_it_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeOllama(models=[MODEL]) as node:
        end, terms = await far_end(node)
        look = await end.obey(terms)
        monkeypatch.setattr(remote_pool, "LEASE_SECONDS", 0.0)
        await end.obey(Terms(None, {"n0": 2}, 1, look.number))
        (known,) = end._registry
        while known.cap:
            await anyio.lowlevel.checkpoint()
        # What comes late is ignored, and the next one is taken.
        await end.obey(Terms(None, {"n0": 9}, 1, look.number))
        assert known.cap == 0
        monkeypatch.setattr(remote_pool, "LEASE_SECONDS", 10.0)
        look = await end.obey(Terms())
        await end.obey(Terms(None, {"n0": 2}, 2, look.number))
        assert known.cap == 2
        await end.aclose()


@pytest.mark.anyio
async def test_a_far_end_is_deaf_to_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLLOL_EMBED_TIMEOUT", "nonsense")
    monkeypatch.setenv("SOLLOL_TRUSTED", "nonsense")
    monkeypatch.setenv("SOLLOL_CONFIG", "/nowhere/config.toml")
    monkeypatch.setenv("OLLAMA_HOST", "10.255.255.1")
    end = RemotePool("w", {"embed_timeout": 7.0, "max_retries": 1})
    assert list(end._registry) == []
    assert end._parts.embedder._timeout == 7.0
    await end.aclose()


@pytest.mark.anyio
async def test_a_far_end_keeps_to_the_digest() -> None:
    other = FakeModel(MODEL.name, dim=4, digest="f" * 64)
    async with FakeOllama(models=[MODEL]) as one, FakeOllama(models=[other]) as two:
        end, terms = await far_end(one, two)
        look = await end.obey(terms)
        assert look.up == {"n0", "n1"}
        await end.obey(Terms(None, {"n0": 2, "n1": 2}, 1, look.number))
        for model in (MODEL, other, MODEL):
            result = await end.embed(partition("a", "b", digest=model.digest))
            assert result.embeddings[0].tobytes() == bytes(fake_vector(model.digest, "a", 4))
        with pytest.raises(NoNodeAvailable, match="required digest"):
            await end.embed(partition("a", digest="e" * 64))
        await end.aclose()


@pytest.mark.anyio
async def test_counters_are_told_once() -> None:
    async with FakeOllama(models=[MODEL]) as node:
        end, terms = await far_end(node)
        look = await end.obey(terms)
        await end.obey(Terms(None, {"n0": 2}, 1, look.number))
        total = NodeCounters()
        for text in ("a", "b", "c"):
            total.merge((await end.embed(partition(text))).counters["n0"])
        (known,) = end._registry
        assert (total.succeeded, total.vectors) == (known.counters.succeeded, 3)
        await end.aclose()


@pytest.mark.parametrize(
    ("own", "allowed", "kept", "share", "cap"),
    [
        (None, None, None, float("inf"), float("inf")),
        (3, None, None, 3, 3),
        (3, 2, None, 2, 2),
        (3, 2, 1, 2, 1),
        (3, 1, 2, 1, 1),
        (None, None, 1, float("inf"), 1),
        (3, None, 0, 3, 0),
    ],
)
def test_a_program_keeps_some_of_its_places(
    own: int | None, allowed: int | None, kept: int | None, share: float, cap: float
) -> None:
    (node,) = registry_of(NodeSpec("http://10.0.0.1", max_concurrency=own))
    node.allow(allowed)
    node.lend(kept, using=2, wants=5)
    assert (node.share, node.cap) == (share, cap)
    assert (node.far_using, node.far_wants) == (2, 5)
    assert node.taken == 2
    node.lend(None)
    assert (node.share, node.cap) == (share, share)
    assert (node.far_using, node.far_wants) == (0, 0)


def test_what_is_lent_counts_as_taken_until_a_lower_share_has_reached_the_workers() -> None:
    (node,) = registry_of(NodeSpec("http://10.0.0.1"))
    node.allow(4)
    node.lend(1, using=1, lent=3)
    assert node.taken == 1
    node.allow(2)  # the workers do not know yet, and may begin two more
    assert (node.cap, node.taken) == (1, 4)
    node.lend(1, using=1, lent=1)
    assert (node.cap, node.taken) == (1, 1)
