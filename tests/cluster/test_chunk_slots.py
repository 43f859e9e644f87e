"""Chunks of batches and live requests in the lines of one node: which gets the next slot."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_cluster import virtual_time

from aiosollol.cluster.node import Node
from aiosollol.cluster.slots import BATCH_WINDOW, Room, Waiter
from aiosollol.core.node import NodeSpec
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.routing.wait_queue import LOW, USUAL

pytestmark = pytest.mark.anyio

EMBED, CHAT = RouteRequest("m", 1.0), RouteRequest("m", 1.0, kind="chat")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


class Line:
    """A node without a free slot, and the order in which the requests get one."""

    def __init__(self, group: anyio.abc.TaskGroup, cap: int | None = None) -> None:
        self.node = Node(NodeSpec("http://a.test", max_concurrency=cap), Room(1000))
        self.order: list[str] = []
        self._group = group
        self.node.allow(0)

    def live(
        self, name: str, came: float, priority: int = USUAL, request: RouteRequest = EMBED
    ) -> None:
        gate = anyio.Event()
        waiter = Waiter(gate, self.node.workload(request), 0.1, 1e9, 1e9)
        assert self.node.line_up(waiter, came, priority) is not None

        async def wait() -> None:
            await gate.wait()
            self.order.append(name)

        self._group.start_soon(wait)

    def chunk(self, name: str, came: float, priority: int = LOW) -> None:
        async def wait() -> None:
            await self.node.enter_chunk(came, priority)
            self.order.append(name)

        self._group.start_soon(wait)

    def check(self, name: str) -> None:
        async def wait() -> None:
            await self.node.enter()
            self.order.append(name)

        self._group.start_soon(wait)


@pytest.mark.parametrize(
    ("came", "priority", "is_first"),
    [
        (0.0, LOW, False),
        (-9.0, LOW, False),
        (-11.0, LOW, True),  # two steps of priority are worth 10 s of waiting
        (1.0, USUAL, False),
        (-1.0, USUAL, True),
        (4.0, USUAL + 1, True),
        (40.0, 10, False),
    ],
)
async def test_a_chunk_goes_before_a_live_request_by_priority_and_waiting_time(
    came: float, priority: int, is_first: bool
) -> None:
    async with anyio.create_task_group() as group:
        line = Line(group)
        line.chunk("chunk", came, priority)
        line.live("live", 0.0)
        await anyio.wait_all_tasks_blocked()
        line.node.allow(1)
        await anyio.wait_all_tasks_blocked()
        assert line.order == (["chunk"] if is_first else ["live"])
        line.node.allow(None)
    assert len(line.order) == 2


async def test_no_chunk_is_sent_while_live_requests_wait() -> None:
    async with anyio.create_task_group() as group:
        line = Line(group)
        node = line.node
        for number in range(4):
            line.live(f"live {number}", 1.0)
        line.chunk("chunk", 0.0)
        await anyio.wait_all_tasks_blocked()
        node.allow(None)  # the limit of live requests is 2
        for waiting in (2, 1):
            await anyio.wait_all_tasks_blocked()
            assert (node.queued, node.has_chunks) == (waiting, False)
            assert "chunk" not in line.order
            node.leave(node.workload(EMBED))
    assert sorted(line.order) == ["chunk", *(f"live {number}" for number in range(4))]


async def test_chunks_take_no_slots_of_live_requests() -> None:
    node = Node(NodeSpec("http://a.test"))
    for _ in range(BATCH_WINDOW):
        await node.enter_chunk(0.0, LOW)
    assert [node.try_enter(node.workload(EMBED)) for _ in range(3)] == [True, True, False]
    assert [node.try_enter(node.workload(CHAT)) for _ in range(3)] == [True, True, False]


async def test_batches_share_a_window_by_priority() -> None:
    async with anyio.create_task_group() as group:
        line = Line(group)
        for number in range(3):
            line.chunk(f"low {number}", float(number), 1)
        for number in range(2):
            line.chunk(f"high {number}", 10.0 + number, 8)
        line.check("check")
        await anyio.wait_all_tasks_blocked()
        node = line.node
        assert node.wanted == 1 + BATCH_WINDOW
        node.allow(None)
        await anyio.wait_all_tasks_blocked()
        assert sorted(line.order) == ["check", "high 0"]
        for name in ("high 1", "low 0", "low 1", "low 2"):
            node.leave_chunk()
            await anyio.wait_all_tasks_blocked()
            assert line.order[-1] == name


requests = st.lists(
    st.tuples(
        st.sampled_from(["embed", "chat", "chunk"]),
        st.floats(0.0, 30.0),
        st.integers(1, 10),
    ),
    max_size=12,
)


@given(requests=requests, cap=st.integers(1, 3))
def test_with_one_slot_all_go_by_one_order(
    requests: list[tuple[str, float, int]], cap: int
) -> None:
    async def run() -> None:
        async with anyio.create_task_group() as group:
            line = Line(group, cap)
            keys = {}
            for number, (kind, came, priority) in enumerate(requests):
                name = f"{kind} {number}"
                keys[name] = came - 5.0 * priority
                if kind == "chunk":
                    line.chunk(name, came, priority)
                else:
                    line.live(name, came, priority, EMBED if kind == "embed" else CHAT)
            await anyio.wait_all_tasks_blocked()
            node = line.node
            node.allow(1)
            for done in range(len(requests)):
                await anyio.wait_all_tasks_blocked()
                assert len(line.order) == done + 1
                assert node.in_flight == 1
                kind = line.order[-1].split()[0]
                if kind == "chunk":
                    node.leave_chunk()
                else:
                    node.leave(node.workload(EMBED if kind == "embed" else CHAT))
            assert (node.in_flight, node.wanted) == (0, 0)
            assert [keys[name] for name in line.order] == sorted(keys.values())

    anyio.run(run, backend="trio")
