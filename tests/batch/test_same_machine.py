"""Two nodes on one machine: whether both work is measured, in virtual time, and remembered."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import trio.testing

from aiosollol.batch.engine_batches import EngineBatches
from aiosollol.batch.runner import BatchRunner
from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.health_monitor import HealthMonitor
from aiosollol.cluster.state import ClusterState
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.planner import PlanOptions, Reason
from aiosollol.live.model_loader import ModelLoader
from aiosollol.live.node_client import NodeClient
from aiosollol.testing import FakeModel, FakeTransport

pytestmark = pytest.mark.anyio

MODEL = FakeModel("nomic-embed-text", dim=4)
SETTINGS = EmbedSettings(model="nomic-embed-text")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class OnOneMachine(FakeTransport):
    """A node whose texts take `factor` times as long while `other` computes as well."""

    factor = 1.0
    other: OnOneMachine | None = None
    alone = 0.01

    @property
    def seconds_per_item(self) -> float:
        is_shared = self.other is not None and self.other.in_flight > 0
        return self.alone * (self.factor if is_shared else 1.0)

    @seconds_per_item.setter
    def seconds_per_item(self, seconds: float) -> None:
        self.alone = seconds


class Machine:
    """Two nodes on 127.0.0.1 and batches over them."""

    def __init__(self, factor: float, same_machine: Any = "measure") -> None:
        self.nodes = {
            name: OnOneMachine(name, models=[MODEL], seconds_per_item=0.01) for name in "ab"
        }
        self.nodes["a"].other, self.nodes["b"].other = self.nodes["b"], self.nodes["a"]
        for node in self.nodes.values():
            node.factor = factor
        self.registry = ClusterState(
            {"url": f"http://127.0.0.1:{port}", "name": name}
            for port, name in enumerate(self.nodes, 1000)
        )
        monitor = HealthMonitor(self.registry, self.nodes.__getitem__)
        self.roster = Eligibility(self.registry, monitor.probe)
        self.options = PlanOptions(same_machine=same_machine)

    async def embed(self, count: int) -> Any:
        await self.roster.probe_all()
        texts = [f"passage {index:06d}" for index in range(count)]
        async with anyio.create_task_group() as group:

            async def run(work: Any) -> None:
                await work

            loads = ModelLoader(lambda work, name: group.start_soon(run, work))
            exchange = NodeClient(self.registry, self.nodes.__getitem__, loads)
            carriage = EngineBatches(self.registry, {}, 0)
            batches = BatchRunner(self.registry, exchange, self.roster, carriage, timeout=60.0)
            embeddings = await batches.embed(SETTINGS, texts, {}, self.options)
        assert not embeddings.errors
        return embeddings.report


async def test_two_that_slow_each_other_down_are_found_out_and_one_works_from_then_on() -> None:
    machine = Machine(factor=6.0)  # as on one CPU: together a third of what one does alone
    first = await machine.embed(1500)
    (finding,) = first.findings
    assert not finding.is_faster_together
    assert finding.together < 0.6 * finding.alone
    assert first.seconds < 1.25 * 15.0, "finding out costs little"
    second = await machine.embed(1500)
    assert second.plan.reason is Reason.SAME_MACHINE
    assert not second.findings
    assert len(second.nodes) == 1
    assert second.seconds < 1.03 * 15.0


async def test_two_that_do_not_disturb_each_other_both_work() -> None:
    machine = Machine(factor=1.0)  # as with a GPU each
    first = await machine.embed(1500)
    (finding,) = first.findings
    assert finding.is_faster_together
    assert finding.together == pytest.approx(2 * finding.alone, rel=0.2)
    assert first.seconds < 0.7 * 15.0
    second = await machine.embed(1500)
    assert set(second.plan.shares) == {"a", "b"}
    assert second.seconds < 1.03 * 7.5


async def test_a_short_batch_does_not_pay_for_finding_out() -> None:
    report = await Machine(factor=6.0).embed(50)
    assert not report.findings
    assert len(report.nodes) == 1


@pytest.mark.parametrize(("by_hand", "working"), [("share", 2), ("one", 1)])
async def test_it_can_be_decided_by_hand(by_hand: str, working: int) -> None:
    report = await Machine(factor=1.0, same_machine=by_hand).embed(1500)
    assert len(report.nodes) == working
    assert not report.findings
