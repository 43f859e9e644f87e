"""The connection to a sidecar, against a stub of one."""

from __future__ import annotations

import asyncio
import io
import pathlib
from typing import Any

import pytest

from aiosollol.engines.ray import (
    protocol,
    sidecar,
)
from aiosollol.engines.ray.sidecar_client import MOST_FAILURES, RayLink
from aiosollol.errors import EngineError, SollolError

pytestmark = pytest.mark.anyio
STUB = str(pathlib.Path(__file__).with_name("ray_stub.py"))


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
