"""The parts of Ray's engine, each by itself: none of these needs Ray."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import pathlib
import pickle
import socket
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from aiosollol import OllamaPool, __version__
from aiosollol.config.settings import TABLE, Settings
from aiosollol.core.leasing.protocol import LeaseCoordinator, MemberReport, NodeUse
from aiosollol.core.node import NodeSpec
from aiosollol.core.offload.partitions import Partition, PendingPartition, PendingPartitions
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.engines.common.remote_pool import NodeEntry
from aiosollol.engines.ray import (
    cluster as ray_cluster,
)
from aiosollol.engines.ray import (
    coordinator as ray_coordinator,
)
from aiosollol.engines.ray import (
    protocol,
    sidecar,
    workers,
)
from aiosollol.engines.ray.coordinator import CoordinatorActor, check, is_replaceable
from aiosollol.engines.ray.engine import fit_workers
from aiosollol.engines.ray.protocol import Contract, Greeting
from aiosollol.engines.ray.sidecar_client import MOST_FAILURES, RayLink
from aiosollol.errors import EngineError, MissingExtra, SollolError
from aiosollol.testing import FakeModel, FakeOllama, Fault, fake_vector

pytestmark = pytest.mark.anyio

MODEL = FakeModel("nomic-embed-text", dim=4)
NAME = "nomic-embed-text"
NUMBERS = itertools.count()
STUB = str(pathlib.Path(__file__).with_name("ray_stub.py"))


# Partitions.


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


# Workers that can be used.


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
        ([greeting(), greeting(version="0.0.1")], ["0.0.1", __version__, "pip install"]),
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
    with pytest.raises(MissingExtra, match=r"aiosollol\[ray\]"):
        OllamaPool(["10.0.0.1"], enable_ray=True)


# The coordinator.


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


# Which cluster.


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")  # so that what `join` sets is undone afterwards
        monkeypatch.delenv(name)
    joined: list[tuple[str, bool]] = []

    def init(address: str, *, is_own: bool, **options: Any) -> ray_cluster.Cluster:
        joined.append((address, is_own))
        return ray_cluster.Cluster("10.0.0.1:1" if is_own else address, is_own, None, "2")

    monkeypatch.setattr(ray_cluster, "_init", init)
    return tmp_path


def test_none_starts_a_cluster_and_tells_where_it_is(alone: pathlib.Path) -> None:
    cluster = ray_cluster.join(None)
    assert cluster.is_own
    told = json.loads(ray_cluster._told_path().read_text("utf-8"))
    assert told["address"] == cluster.address


def test_what_was_told_and_does_not_answer_is_not_believed(
    alone: pathlib.Path, unused_port: int
) -> None:
    ray_cluster._told_path().write_text(json.dumps({"address": f"127.0.0.1:{unused_port}"}))
    assert ray_cluster.join(None).is_own


@pytest.mark.parametrize("text", ["", "[", '{"pid": 1}', "[1]"])
def test_what_was_told_and_is_nonsense_is_ignored(alone: pathlib.Path, text: str) -> None:
    ray_cluster._told_path().write_text(text)
    assert ray_cluster.join(None).is_own


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_cluster_that_one_of_us_started_is_found(
    alone: pathlib.Path, listening: str, address: str | None
) -> None:
    ray_cluster._told_path().write_text(json.dumps({"address": listening}))
    assert ray_cluster.join(address)[:2] == (listening, False)


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_cluster_of_ray_start_is_found(
    alone: pathlib.Path, listening: str, address: str | None
) -> None:
    (alone / "ray").mkdir()
    (alone / "ray" / "ray_current_cluster").write_text(f"{listening}\n")
    assert ray_cluster.join(address)[:2] == (listening, False)


def test_without_a_place_for_the_address_nothing_is_started(
    alone: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alone / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(alone / "file"))
    with pytest.raises(ray_cluster.ClusterGone, match="name one with ray_address"):
        ray_cluster.join(None)


def test_the_variable_of_ray_names_one(
    alone: pathlib.Path, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", listening)
    assert ray_cluster.join(None)[:2] == (listening, False)


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_where_nothing_answers_the_error_says_what_to_do(
    alone: pathlib.Path, unused_port: int, address: str
) -> None:
    with pytest.raises(ray_cluster.ClusterGone, match="ray start --head"):
        ray_cluster.join(address.format(port=unused_port))


@pytest.mark.parametrize(
    ("error", "address", "words"),
    [
        (
            RuntimeError("Version mismatch: \n 2.9 and 2.60"),
            "a:1",
            "same versions of Python and Ray",
        ),
        (ImportError("no grpc"), "ray://a:1", r"pip install 'ray\[client\]'"),
        (SystemExit(15), "a:1", "at a:1 cannot be used: 15"),
        (ConnectionError(), "a:1", "cannot be used: ConnectionError"),
    ],
)
def test_whatever_ray_raises_there_is_no_cluster(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, address: str, words: str
) -> None:
    def init(**options: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init))
    with pytest.raises(ray_cluster.ClusterGone, match=words):
        ray_cluster._init(address, is_own=False)


# The sidecar, without Ray.


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("x\n y"), "failed: RuntimeError: x y"),
        (RuntimeError("...: No module named 'aiosollol' ..."), "pip install 'aiosollol[ray]'"),
        (RuntimeError("x" * 1000), "failed: RuntimeError: " + "x" * 200),
    ],
)
def test_what_ray_raises_is_told_in_a_line(error: Exception, words: str) -> None:
    outcome, told = sidecar.in_words(error)
    assert words in told
    assert (outcome == "failed") == told.startswith("failed")


def test_frames_are_read_as_they_were_written() -> None:
    values = [(1, "run", (b"x" * 100_000,)), (2, "cancel", ()), None]
    stream = io.BytesIO(b"".join(map(protocol.pack, values)))
    assert [protocol.read(stream) for _ in values] == values
    with pytest.raises(EOFError):
        protocol.read(stream)


async def test_orders_are_carried_out_side_by_side_and_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    class Stub(sidecar.Sidecar):
        async def do_hang(self) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def do_add(self, one: int, two: int) -> int:
            return one + two

        async def do_refuse(self) -> None:
            raise EngineError("ray", "is not for you")

        async def do_fail(self) -> None:
            raise RuntimeError("of ray")

    monkeypatch.setattr(sidecar, "Sidecar", Stub)
    orders: asyncio.Queue[Any] = asyncio.Queue()
    answers: asyncio.Queue[Any] = asyncio.Queue()
    serving = asyncio.create_task(sidecar.serve(orders, answers.put_nowait))
    orders.put_nowait((1, "hang", ()))
    await began.wait()
    orders.put_nowait((2, "add", (1, 2)))
    assert await answers.get() == (2, "done", 3)
    orders.put_nowait((3, "refuse", ()))
    assert await answers.get() == (3, "refused", "is not for you")
    orders.put_nowait((4, "fail", ()))
    assert await answers.get() == (4, "failed", "failed: RuntimeError: of ray")
    orders.put_nowait((1, "cancel", ()))
    assert await answers.get() == (1, "refused", "was cancelled")
    assert ended.is_set()
    began.clear()
    orders.put_nowait((5, "hang", ()))
    await began.wait()
    orders.put_nowait(None)
    await serving
    assert (await answers.get())[:2] == (5, "refused")


# The program's end of it, with a stub in the place of the sidecar.


def stub_link(address: str) -> RayLink:
    return RayLink(address, arguments=(STUB,))


async def test_a_link_starts_once_and_answers_many() -> None:
    link = stub_link("good")
    try:
        answers = await asyncio.gather(*(link.call("echo", n, timeout=60.0) for n in range(20)))
        assert answers == list(range(20))
        assert link.life == 1
        assert link.is_connected
        assert link.info is not None
        assert link.info.address == "good"
    finally:
        await link.aclose()
    assert not link.is_connected
    assert link.pid is None


async def test_large_answers_come_whole() -> None:
    link = stub_link("good")
    data = bytes(5_000_000)
    try:
        assert await link.call("echo", data, timeout=60.0) == data
    finally:
        await link.aclose()


async def test_a_sidecar_that_dies_is_an_error_and_the_next_call_has_another() -> None:
    link = stub_link("good")
    try:
        with pytest.raises(EngineError, match="process has ended; it said: last words"):
            await link.call("die", timeout=60.0)
        assert not link.is_connected
        assert await link.call("echo", 1, timeout=60.0) == 1
        assert link.life == 2
    finally:
        await link.aclose()


async def test_what_is_not_answered_in_time_is_cancelled() -> None:
    link = stub_link("good")
    try:
        await link.start()
        with pytest.raises(EngineError, match=r"did not answer 'hang' within 0\.01 s"):
            await link.call("hang", timeout=0.01)
        assert await link.call("cancelled", timeout=60.0) == 1
        assert link.life == 1
    finally:
        await link.aclose()


async def test_a_sidecar_whose_ray_fails_again_and_again_is_replaced() -> None:
    link = stub_link("good")
    try:
        for _ in range(MOST_FAILURES - 1):
            with pytest.raises(EngineError, match="of Ray"):
                await link.call("fail", timeout=60.0)
        assert await link.call("echo", 1, timeout=60.0) == 1  # it has not failed for good
        other = asyncio.create_task(link.call("hang", timeout=None))
        for _ in range(MOST_FAILURES):
            assert link.life == 1
            with pytest.raises(EngineError, match="of Ray"):
                await link.call("fail", timeout=60.0)
        assert not link.is_connected
        with pytest.raises(EngineError, match="of Ray"):
            await other
        assert await link.call("echo", 1, timeout=60.0) == 1
        assert link.life == 2
    finally:
        await link.aclose()


async def test_a_sidecar_that_refuses_is_as_good_as_before() -> None:
    link = stub_link("good")
    try:
        for _ in range(MOST_FAILURES + 1):
            with pytest.raises(EngineError, match="is not for you"):
                await link.call("refuse", timeout=60.0)
        assert link.life == 1
    finally:
        await link.aclose()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("refused", "there is no cluster; start one"),
        ("dies", "process has ended; it said: last words"),
        ("token", "RAY_AUTH_MODE=token"),
    ],
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(address: str, words: str) -> None:
    link = stub_link(address)
    try:
        for _ in range(2):
            with pytest.raises(EngineError, match=words):
                await link.start()
            assert link.pid is None
    finally:
        await link.aclose()


async def test_a_cancelled_call_is_cancelled_there_too() -> None:
    link = stub_link("good")
    try:
        await link.start()
        call = asyncio.create_task(link.call("hang", timeout=None))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await link.call("cancelled", timeout=60.0) == 1
    finally:
        await link.aclose()


async def test_closing_ends_a_start_that_hangs() -> None:
    link = stub_link("hangs")
    starting = asyncio.create_task(link.start())
    while link.pid is None:
        await asyncio.sleep(0)
    await link.aclose()
    with pytest.raises((asyncio.CancelledError, EngineError)):
        await starting
    assert link.pid is None
    with pytest.raises(SollolError, match="closed"):
        await link.start()


# A worker, in this process, with a coordinator that is no actor.


class Remote:
    """A method of an actor that is called right here."""

    def __init__(self, method: Any) -> None:
        self._method = method

    async def remote(self, *arguments: Any) -> Any:
        return self._method(*arguments)


class Handle:
    def __init__(self, actor: CoordinatorActor) -> None:
        self.exchange = Remote(actor.exchange)


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> CoordinatorActor:
    actor = CoordinatorActor()
    monkeypatch.setattr(workers, "find_coordinator", lambda: Handle(actor))
    return actor


def contract(*urls: str) -> bytes:
    settings = {key: getattr(Settings(), key) for key in TABLE}
    nodes = tuple(NodeEntry(NodeSpec(url, max_concurrency=2)) for url in urls)
    return pickle.dumps(Contract(settings, "group", 1.0, nodes))


def order(urls: list[str], texts: list[str]) -> bytes:
    nodes = tuple(NodeEntry(NodeSpec(url, max_concurrency=2)) for url in urls)
    partition = Partition(0, EmbedSettings(model=NAME), texts, PlanOptions())
    return pickle.dumps((nodes, partition))


async def test_a_worker_embeds_within_its_leases(coordinator: CoordinatorActor) -> None:
    texts = [f"text {n}" for n in range(300)]
    async with FakeOllama(models=[MODEL]) as node:
        worker = workers.WorkerActor("w", contract(node.url))
        try:
            greeted: Greeting = pickle.loads(await worker.greet())
            assert (greeted.name, greeted.version) == ("w", __version__)
            assert len(greeted.up) == 1
            result = pickle.loads(await worker.run(1, order([node.url], texts)))
            assert bytes(result.vectors) == b"".join(
                fake_vector(MODEL.digest, text, 4) for text in texts
            )
            assert node.max_in_flight <= 2
            statistics = coordinator._commons.statistics(0.0)
            assert [group.name for group in statistics.groups] == ["group"]
        finally:
            await close(worker)


async def test_a_worker_learns_of_nodes_with_its_orders(coordinator: CoordinatorActor) -> None:
    async with FakeOllama(models=[MODEL]) as one, FakeOllama(models=[MODEL]) as two:
        worker = workers.WorkerActor("w", contract(one.url))
        try:
            await worker.greet()
            result = pickle.loads(await worker.run(1, order([two.url], ["a", "b"])))
            assert result.count == 2
            assert one.requests == 0 < two.requests
        finally:
            await close(worker)


async def test_a_worker_stops_what_it_is_told_to(coordinator: CoordinatorActor) -> None:
    async with FakeOllama(models=[MODEL]) as node:
        worker = workers.WorkerActor("w", contract(node.url))
        try:
            await worker.run(1, order([node.url], ["a"]))  # loads the model, which nobody ends
            node.fault = Fault.HANG
            run = asyncio.create_task(worker.run(7, order([node.url], ["a"])))
            while not node.in_flight:
                await asyncio.sleep(0.001)
            await worker.stop(7)
            with pytest.raises(asyncio.CancelledError):
                await run
            while node.in_flight:
                await asyncio.sleep(0.001)
            await worker.stop(8)  # of which it knows nothing
        finally:
            await close(worker)


async def test_a_worker_whose_nodes_all_refuse_says_so(
    coordinator: CoordinatorActor, unused_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_port}"
    worker = workers.WorkerActor("w", contract(url))
    try:
        greeted: Greeting = pickle.loads(await worker.greet())
        assert greeted.up == ()
        assert list(greeted.down) == [f"127.0.0.1:{unused_port}"]
        result = pickle.loads(await worker.run(1, order([url], ["a"])))
        assert isinstance(result, SollolError)
    finally:
        await close(worker)


async def close(worker: workers.WorkerActor) -> None:
    """What Ray does by ending its process."""
    for task in (worker._renewing, worker._starting):
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
    if worker._far is not None:
        await worker._far.aclose()


def test_nothing_here_has_loaded_ray() -> None:
    assert "ray" not in sys.modules
    assert ray_coordinator.ACTOR_NAME == "aiosollol-coordinator"
    assert LeaseCoordinator().members is not None
