"""The executor over fake transports, in virtual time: what takes a second here takes none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import pytest
import trio.testing

from aiosollol.batch.executor import BatchJob, Executor
from aiosollol.cluster.health_monitor import HealthMonitor
from aiosollol.cluster.state import ClusterState
from aiosollol.core.node_transitions import Probed, ProbeFailed
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.planner import BatchShape, PlanOptions, plan
from aiosollol.core.scheduling.vector_buffer import VectorBuffer
from aiosollol.errors import BadRequest, NodeUnreachable, NoNodeAvailable
from aiosollol.live.model_loader import ModelLoader
from aiosollol.live.node_client import NodeClient
from aiosollol.testing import FakeModel, FakeTransport, Fault, fake_vector

pytestmark = pytest.mark.anyio

MODEL = FakeModel("nomic-embed-text", dim=8)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class Cluster:
    """Fake nodes, probed, and one batch after another over them."""

    def __init__(self, **nodes: dict[str, Any]) -> None:
        self.transports = {
            name: FakeTransport(name, models=[MODEL], **options) for name, options in nodes.items()
        }
        self.state = ClusterState(
            {"url": f"http://{name}.test", "name": name} for name in self.transports
        )

    def __getitem__(self, name: str) -> FakeTransport:
        return self.transports[name]

    async def probe(self) -> None:
        monitor = HealthMonitor(self.state, self.transports.__getitem__)
        for name in self.transports:
            await monitor.probe(name)

    def node_client(self, group: anyio.abc.TaskGroup) -> NodeClient:
        async def run(work: Any) -> None:
            await work

        loads = ModelLoader(lambda work, name: group.start_soon(run, work))
        return NodeClient(self.state, self.transports.__getitem__, loads)

    def job(self, texts: list[str], timeout: float = 60.0) -> BatchJob:
        tokens = [len(text) / 4 + 2 for text in texts]
        options = PlanOptions()
        up = [node for node in self.state if node.state.has_model(MODEL.name)]
        view = self.state.candidates(MODEL.name, up)
        planned = plan(view, BatchShape(len(tokens), sum(tokens)), options)
        settings = EmbedSettings(model="nomic-embed-text")
        return BatchJob(settings, texts, tokens, timeout, planned, options)

    async def embed(
        self,
        texts: list[str],
        *,
        timeout: float = 60.0,
        on_progress: Callable[[int], None] | None = None,
    ) -> Batch:
        await self.probe()
        buffer = VectorBuffer(len(texts), range(len(texts)))
        job = self.job(texts, timeout)
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            executor = Executor(job, buffer, self.state, self.node_client(group), on_progress)
            await executor.run()
            group.cancel_scope.cancel()
        return Batch(executor, buffer, texts, anyio.current_time() - began)


class Batch:
    def __init__(
        self, executor: Executor, buffer: VectorBuffer, texts: list[str], seconds: float
    ) -> None:
        self.executor, self.buffer, self.texts, self.seconds = executor, buffer, texts, seconds
        self.errors = executor.state.errors
        self.shares = executor.shares(seconds)

    def check(self) -> None:
        """Every text has its own vector, or an error."""
        vectors = self.buffer.finish().tobytes()
        for row, text in enumerate(self.texts):
            if row not in self.errors:
                expected = bytes(fake_vector(MODEL.digest, text, 8))
                assert vectors[row * 32 : row * 32 + 32] == expected, row


def words(count: int) -> list[str]:
    return [f"passage {index:05d}" for index in range(count)]


async def test_every_vector_is_right_and_in_its_place() -> None:
    cluster = Cluster(a={"seconds_per_item": 0.01}, b={"seconds_per_item": 0.03})
    batch = await cluster.embed([*words(200), "x", "a much longer text " * 50])
    batch.check()
    assert not batch.errors
    assert sum(share.items for share in batch.shares.values()) == 202


async def test_unequal_nodes_finish_near_the_lower_bound() -> None:
    cluster = Cluster(
        a={"seconds_per_item": 0.01}, b={"seconds_per_item": 0.1}, c={"seconds_per_item": 0.1}
    )
    bound = 200 / (100 + 10 + 10)
    cold = await cluster.embed(words(200))
    assert cold.seconds < 1.10 * bound
    await cluster.embed(words(200))
    warm = await cluster.embed(words(200))
    assert warm.seconds < 1.03 * bound


async def test_a_node_gets_two_requests_at_once_and_no_more() -> None:
    cluster = Cluster(a={"seconds_per_item": 0.01}, b={"seconds_per_item": 0.01})
    await cluster.embed(words(500))
    assert cluster["a"].max_in_flight == 2
    assert cluster["b"].max_in_flight == 2


async def test_two_batches_together_keep_within_the_window() -> None:
    cluster = Cluster(a={"seconds_per_item": 0.01})
    await cluster.probe()
    async with anyio.create_task_group() as group:
        group.start_soon(cluster.embed, words(100))
        group.start_soon(cluster.embed, words(100))
    assert cluster["a"].max_in_flight == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault.ERROR_500,
        Fault.BUSY_503,
        Fault.BAD_400_RUNNER,
        Fault.HANG,
        Fault.RESET,
        Fault.CUT_JSON,
        Fault.HTML,
        Fault.HTML_502,
        Fault.NAN,
        Fault.WRONG_DIM,
        Fault.TOO_FEW,
        Fault.REFUSE,
    ],
)
async def test_a_faulty_node_costs_no_item(fault: Fault) -> None:
    cluster = Cluster(
        a={"seconds_per_item": 0.01}, b={"seconds_per_item": 0.01}, bad={"seconds_per_item": 0.01}
    )
    await cluster.probe()
    cluster["bad"].fault = fault
    batch = await cluster.embed(words(300))
    batch.check()
    assert not batch.errors
    # Two nodes could do it in 1.5 s: the third must not hold them up.
    assert batch.seconds < 2.0


async def test_a_node_that_dies_in_the_middle_costs_about_its_chunks() -> None:
    cluster = Cluster(**{name: {"seconds_per_item": 0.01} for name in "abc"})
    await cluster.embed(words(600))
    async with anyio.create_task_group() as group:

        async def kill() -> None:
            await anyio.sleep(1.0)
            cluster["c"].fault = Fault.REFUSE

        group.start_soon(kill)
        batch = await cluster.embed(words(600))
    batch.check()
    assert not batch.errors
    assert batch.seconds < 2.5 + 0.5


async def test_a_node_that_hangs_in_the_middle_is_copied_around() -> None:
    cluster = Cluster(a={"seconds_per_item": 0.01}, b={"seconds_per_item": 0.01})
    await cluster.embed(words(100))
    cluster["b"].fault = Fault.HANG
    batch = await cluster.embed(words(100))
    batch.check()
    assert not batch.errors
    assert batch.seconds < 3.0, "the deadline of 60 s was not waited for"
    assert cluster["b"].cancelled >= 1, "the lost request was cancelled on the wire"
    assert batch.executor.state.copies >= 1


async def test_a_node_that_appears_during_the_batch_joins() -> None:
    cluster = Cluster(a={"seconds_per_item": 0.01}, b={"seconds_per_item": 0.01})
    cluster["b"].faults_probes = True
    cluster["b"].fault = Fault.REFUSE
    async with anyio.create_task_group() as group:

        async def heal() -> None:
            await anyio.sleep(1.0)
            cluster["b"].fault = None
            await cluster.probe()

        group.start_soon(heal)
        batch = await cluster.embed(words(300))
    batch.check()
    assert batch.shares["b"].items > 50
    assert batch.seconds < 2.3


async def test_one_poisoned_text_fails_alone_with_the_servers_words() -> None:
    cluster = Cluster(a={"poison": {"arsenic"}}, b={"poison": {"arsenic"}})
    texts = words(100)
    texts[37] = "a text with arsenic in it"
    batch = await cluster.embed(texts)
    batch.check()
    assert set(batch.errors) == {37}
    assert isinstance(batch.errors[37], BadRequest)


async def test_when_all_nodes_die_every_item_says_so_and_what_was_done_is_kept() -> None:
    cluster = Cluster(a={"seconds_per_item": 0.01}, b={"seconds_per_item": 0.01})
    await cluster.embed(words(10))
    async with anyio.create_task_group() as group:

        async def kill() -> None:
            await anyio.sleep(0.5)
            for name in "ab":
                cluster[name].fault = Fault.REFUSE

        group.start_soon(kill)
        batch = await cluster.embed(words(400))
    batch.check()
    assert 0 < len(batch.errors) < 400
    error = next(iter(batch.errors.values()))
    assert isinstance(error, NoNodeAvailable)
    assert set(error.nodes) == {"a", "b"}


async def test_the_batch_goes_on_when_a_dead_cluster_returns_in_time() -> None:
    cluster = Cluster(a={"seconds_per_item": 0.01})
    await cluster.probe()
    async with anyio.create_task_group() as group:

        async def blink() -> None:
            await anyio.sleep(0.3)
            cluster["a"].fault = Fault.REFUSE
            await anyio.sleep(2.0)
            cluster["a"].fault = None
            cluster.state.apply("a", ProbeFailed(NodeUnreachable("a", "refused")))
            state = cluster.state["a"].state
            cluster.state.apply("a", Probed("0.13.0", state.models or {}))

        group.start_soon(blink)
        batch = await cluster.embed(words(200))
    batch.check()
    assert not batch.errors


async def test_cancelling_the_batch_cancels_its_requests() -> None:
    cluster = Cluster(a={"seconds_per_item": 1.0}, b={"seconds_per_item": 1.0})
    with anyio.move_on_after(2.5) as scope:
        await cluster.embed(words(100))
    assert scope.cancelled_caught
    assert cluster["a"].in_flight == cluster["b"].in_flight == 0
    assert cluster["a"].cancelled + cluster["b"].cancelled >= 2
    for node in cluster.state:
        assert node.in_flight == 0
        assert node.counters.cancelled >= 1


async def test_progress_only_grows_and_ends_with_all() -> None:
    seen: list[int] = []
    cluster = Cluster(a={"seconds_per_item": 0.01}, b={"seconds_per_item": 0.02})
    await cluster.embed(words(100), on_progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == 100


async def test_a_model_that_vanished_from_a_node_is_not_held_against_it() -> None:
    cluster = Cluster(a={"seconds_per_item": 0.01}, b={"seconds_per_item": 0.01})
    await cluster.embed(words(10))
    other = FakeTransport("b", models=[FakeModel("something-else")])
    cluster.transports["b"] = other
    buffer = VectorBuffer(50, range(50))
    async with anyio.create_task_group() as group:
        executor = Executor(
            cluster.job(words(50)), buffer, cluster.state, cluster.node_client(group)
        )
        await executor.run()
    Batch(executor, buffer, words(50), 0.0).check()
    assert not executor.state.errors
    assert not cluster.state["b"].state.is_down
    assert not cluster.state["b"].state.has_model("nomic-embed-text")
