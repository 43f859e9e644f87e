"""How a client leads its workers, in virtual time: nobody above a node's limit, nothing idle."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trio.testing

from aiosollol.cluster.state import ClusterState
from aiosollol.core.node import NodeSpec
from aiosollol.engines import lease_leader
from aiosollol.engines.lease_leader import LeaseLeader
from aiosollol.engines.remote_pool import LEASE_SECONDS, Look, Terms
from aiosollol.errors import EngineError

pytestmark = pytest.mark.anyio

SPECS = [
    NodeSpec("http://10.0.0.1", name="a"),
    NodeSpec("http://10.0.0.2", name="b", max_concurrency=1),
    NodeSpec("http://10.0.0.3", name="c", max_concurrency=3),
]
CAPACITY = {"a": 2, "b": 1, "c": 3}


@pytest.fixture
def anyio_backend() -> Any:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class Nodes:
    """What is under way on the nodes, whoever sent it, and the slot-seconds that were used."""

    def __init__(self) -> None:
        self.under_way: Counter[str] = Counter()
        self.used: Counter[tuple[str, str]] = Counter()

    async def request(self, who: str, node: str, seconds: float) -> None:
        self.under_way[node] += 1
        assert self.under_way[node] <= CAPACITY[node], node
        try:
            await anyio.sleep(seconds)
        finally:
            self.under_way[node] -= 1
            self.used[who, node] += seconds


class FakeWorker:
    """A far end that sends requests whenever its lease lets it, and wants more."""

    def __init__(self, name: str, nodes: Nodes, reach: str = "abc") -> None:
        self.name = name
        self.nodes = nodes
        self.reach = reach
        self.knows: set[str] = set()
        self.is_idle = False
        self.is_hung = False
        self.slots: Mapping[str, int] = {}
        self.serial = self.number = 0
        self.using: Counter[str] = Counter()
        self.looked_at: dict[int, float] = {}
        self.until = 0.0

    async def obey(self, terms: Terms) -> Look:
        if self.is_hung:
            await anyio.sleep(10.0)
            raise EngineError("dask", f"worker {self.name} cannot be used: it hangs")
        await anyio.sleep(0.01)
        if terms.nodes is not None:
            self.knows = {entry.spec.name for entry in terms.nodes}
        is_new = terms.serial > self.serial and terms.answers in self.looked_at
        if terms.slots is not None and is_new:
            self.slots, self.serial = terms.slots, terms.serial
            self.until = self.looked_at[terms.answers] + LEASE_SECONDS
        self.number += 1
        self.looked_at[self.number] = anyio.current_time()
        up = frozenset(self.knows & set(self.reach))
        wants = {} if self.is_idle else dict.fromkeys(up, 5)
        using = {node: count for node, count in self.using.items() if count}
        down = {name: f"{name} refused" for name in self.knows - up}
        await anyio.sleep(0.01)
        return Look(self.number, self.serial, using, wants, up, down)

    async def work(self, node: str, seconds: float) -> None:
        while True:
            may = self.slots.get(node, 0) if anyio.current_time() < self.until else 0
            if self.is_idle or self.using[node] >= may:
                await anyio.sleep(0.1)
                continue
            self.using[node] += 1
            try:
                await self.nodes.request(self.name, node, seconds)
            finally:
                self.using[node] -= 1


class FakeLink:
    """A cluster of such workers. calls: how often anybody was told anything."""

    scheduler = "tcp://10.0.0.9:8786"

    def __init__(self) -> None:
        self.workers: dict[str, FakeWorker] = {}
        self.problems: dict[str, str] = {}
        self.calls = 0

    async def threads(self) -> dict[str, int]:
        await anyio.sleep(0.005)
        return dict.fromkeys(self.workers, 1)

    async def greet(self, worker: str) -> None:
        if worker in self.problems:
            raise EngineError("dask", self.problems[worker])

    async def tell(self, worker: str, terms: Terms) -> Look | None:
        self.calls += 1
        if worker not in self.workers:
            raise EngineError("dask", "it is gone")
        return await self.workers[worker].obey(terms)


class Cluster:
    def __init__(self) -> None:
        self.nodes = Nodes()
        self.link = FakeLink()
        self.registry = ClusterState(SPECS)
        self.leader = LeaseLeader("dask", self.link, self.registry)
        self.scopes: dict[str, anyio.CancelScope] = {}
        self.group: Any = None

    def add(self, name: str, reach: str = "abc") -> FakeWorker:
        worker = FakeWorker(name, self.nodes, reach)
        self.link.workers[name] = worker
        self.group.start_soon(self._run, worker)
        return worker

    async def _run(self, worker: FakeWorker) -> None:
        with anyio.CancelScope() as self.scopes[worker.name]:
            async with anyio.create_task_group() as group:
                for node in worker.reach:
                    for place in range(4):
                        group.start_soon(worker.work, node, 0.3 + 0.1 * place)

    def kill(self, name: str) -> None:
        del self.link.workers[name]
        self.scopes[name].cancel()

    def used(self, worker: str) -> float:
        return sum(seconds for (who, _), seconds in self.nodes.used.items() if who == worker)


@asynccontextmanager
async def running(*names: str) -> AsyncIterator[Cluster]:
    cluster = Cluster()
    async with anyio.create_task_group() as cluster.group:
        for name in names:
            cluster.add(name)
        cluster.group.start_soon(cluster.leader.run)
        yield cluster
        cluster.group.cancel_scope.cancel()


async def test_all_slots_are_used_and_none_twice() -> None:
    async with running("u", "v", "w") as cluster:
        async with cluster.leader.leading():
            await cluster.leader.wait_fit(["a"])
            await anyio.sleep(30.0)
        assert sum(cluster.nodes.used.values()) > 30.0 * 6 * 0.8
        shares = [cluster.used(name) for name in "uvw"]
        assert max(shares) < 1.3 * min(shares)


async def test_before_and_after_a_batch_nobody_works_there() -> None:
    async with running("u", "v") as cluster:
        await anyio.sleep(5.0)
        assert not cluster.nodes.used
        calls = cluster.link.calls
        await anyio.sleep(60.0)
        assert cluster.link.calls - calls <= 2 * 5  # idle workers are hardly bothered
        async with cluster.leader.leading():
            await anyio.sleep(3.0)
            assert all(node.cap < 4 for node in cluster.registry)
        await anyio.sleep(3.0)
        assert [node.cap for node in cluster.registry] == [float("inf"), 1, 3]
        assert [(node.far_using, node.far_wants) for node in cluster.registry] == [(0, 0)] * 3
        assert not +cluster.nodes.under_way
        used = dict(cluster.nodes.used)
        await anyio.sleep(15.0)
        assert cluster.nodes.used == used
        async with cluster.leader.leading():
            await anyio.sleep(3.0)
        assert cluster.nodes.used != used


async def test_the_client_has_its_share_too() -> None:
    async with running("u", "v") as cluster, cluster.leader.leading():
        done = Counter[str]()

        async def live(name: str) -> None:
            node = cluster.registry[name]
            while True:
                await node.enter()
                try:
                    await cluster.nodes.request("client", name, 0.4)
                finally:
                    node.leave_chunk()
                done[name] += 1

        await anyio.sleep(2.0)
        for node in "abc":
            for _ in range(4):
                cluster.group.start_soon(live, node)
        await anyio.sleep(30.0)
        shares = [cluster.used(name) for name in ("u", "v", "client")]
        assert max(shares) < 1.4 * min(shares)
        assert sum(shares) > 30.0 * 6 * 0.8


async def test_a_worker_that_dies_leaves_its_slots_at_once() -> None:
    async with running("u", "v") as cluster, cluster.leader.leading():
        await anyio.sleep(10.0)
        cluster.kill("u")
        await anyio.sleep(2.0)
        before = cluster.used("v")
        await anyio.sleep(20.0)
        assert cluster.used("v") - before > 20.0 * 6 * 0.9


async def test_one_that_hangs_keeps_its_slots_for_a_term_and_nobody_waiting() -> None:
    async with running("u", "v", "w") as cluster, cluster.leader.leading():
        await anyio.sleep(10.0)
        cluster.link.workers["u"].is_hung = True
        before = {name: cluster.used(name) for name in "uvw"}
        await anyio.sleep(40.0)
        after = {name: cluster.used(name) - before[name] for name in "uvw"}
        assert after["u"] < 6 * LEASE_SECONDS
        assert after["v"] + after["w"] > 6 * (40.0 - LEASE_SECONDS - 3.0) * 0.85
        cluster.link.workers["u"].is_hung = False
        await anyio.sleep(20.0)
        assert cluster.used("u") > before["u"] + after["u"] + 15.0


async def test_a_worker_that_comes_takes_part() -> None:
    async with running("u") as cluster, cluster.leader.leading():
        await anyio.sleep(5.0)
        cluster.add("v")
        await anyio.sleep(2.0)
        before = cluster.used("v")
        await anyio.sleep(30.0)
        assert cluster.used("v") - before > 30.0 * 6 / 2 * 0.8


async def test_one_that_begins_anew_is_told_of_the_nodes_again() -> None:
    async with running("u") as cluster, cluster.leader.leading():
        await anyio.sleep(5.0)
        cluster.scopes["u"].cancel()
        cluster.add("u")
        await anyio.sleep(LEASE_SECONDS + 2.0)
        before = cluster.used("u")
        await anyio.sleep(5.0)
        assert cluster.used("u") - before > 5.0 * 6 * 0.8


async def test_slots_of_nodes_out_of_reach_go_to_others() -> None:
    async with running("u") as cluster, cluster.leader.leading():
        cluster.add("v", reach="a")
        await anyio.sleep(3.0)
        before = cluster.used("u")
        await anyio.sleep(20.0)
        assert cluster.used("u") - before > 20.0 * 4 * 0.9  # all of b and c at least


async def test_a_program_that_is_allowed_less_has_its_workers_have_less() -> None:
    async with running("u", "v") as cluster, cluster.leader.leading():
        await anyio.sleep(5.0)
        node = cluster.registry["c"]
        node.allow(1)
        await anyio.sleep(3.0)
        assert cluster.nodes.under_way["c"] + node.cap <= 1
        assert node.far_wants > 0
        node.allow(None)
        await anyio.sleep(3.0)
        assert cluster.nodes.under_way["c"] >= 2


async def test_waiting_for_workers(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as cluster, cluster.leader.leading():
        began = anyio.current_time()
        with pytest.raises(EngineError, match=r"dask worker tcp://10\.0\.0\.9:8786"):
            await cluster.leader.wait_fit(["a"])
        assert anyio.current_time() - began == pytest.approx(lease_leader.FIT_SECONDS)
        cluster.link.problems["u"] = "worker u has aiosollol 0"
        cluster.add("u")
        with pytest.raises(EngineError, match="has aiosollol 0"):
            await cluster.leader.wait_fit(["a"])
        cluster.add("v", reach="b")
        with pytest.raises(EngineError, match=r"a refused.*own machine"):
            await cluster.leader.wait_fit(["a"])
        cluster.add("w", reach="a")
        for _ in range(2):
            found = await cluster.leader.wait_fit(["a"])
            assert [each.name for each in found.fit] == ["w"]
        assert len([each for each in caplog.messages if "is not used" in each]) == 2


async def test_a_hung_worker_does_not_keep_a_batch_waiting_for_ever() -> None:
    async with running("u") as cluster, cluster.leader.leading():
        cluster.add("v").is_hung = True
        began = anyio.current_time()
        found = await cluster.leader.wait_fit(["a"])
        assert [each.name for each in found.fit] == ["u"]
        assert anyio.current_time() - began <= lease_leader.FIT_SECONDS


async def test_a_leader_that_ends_lifts_the_limits() -> None:
    async with running("u") as cluster:
        async with anyio.create_task_group() as group:
            leader = LeaseLeader("dask", cluster.link, cluster.registry)
            group.start_soon(leader.run)
            async with leader.leading():
                await anyio.sleep(3.0)
                group.cancel_scope.cancel()
                await anyio.sleep(1.0)
        assert [node.cap for node in cluster.registry] == [float("inf"), 1, 3]
