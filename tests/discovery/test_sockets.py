"""Sockets: never too many, always closed."""

from __future__ import annotations

import asyncio
import os
import resource
import sys

import pytest
from discovery_servers import serving, silent

from aiosollol.discovery.sockets import Sockets, connect

pytestmark = pytest.mark.anyio


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("most", "files", "limit"),
    [(256, 20_000, 256), (256, 300, 100), (1, 20_000, 1), (256, 2, 1), (256, -1, 256)],
)
async def test_the_limit_is_a_third_of_the_files(
    monkeypatch: pytest.MonkeyPatch, most: int, files: int, limit: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    assert resource.RLIM_INFINITY == -1
    assert Sockets(most).limit == limit


async def test_without_a_file_limit_there_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert Sockets(256).limit == 170


async def test_places_are_counted_and_given_back() -> None:
    sockets = Sockets(2)
    inside: list[int] = []
    leave = asyncio.Event()

    async def hold(number: int) -> None:
        async with sockets:
            inside.append(number)
            await leave.wait()

    tasks = [asyncio.create_task(hold(number)) for number in range(4)]
    while len(inside) < 2:
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert inside == [0, 1]
    tasks[0].cancel()
    leave.set()
    await asyncio.wait(tasks)
    assert sorted(inside) == [0, 1, 2, 3]
    assert sockets.open_at_most == 2


async def test_a_sweep_leaves_two_places() -> None:
    sockets = Sockets(5)
    for _ in range(3):
        await sockets.begin_sweeping()
    fourth = asyncio.create_task(sockets.begin_sweeping())
    await asyncio.sleep(0)
    assert not fourth.done()
    sockets.end_sweeping()
    await fourth


async def test_a_sweep_with_one_socket_still_goes_on() -> None:
    await Sockets(1).begin_sweeping()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.77", "::1"])
async def test_connect(host: str) -> None:
    async with serving(silent, host) as server:
        with await connect(host, server.port) as sock:
            assert sock.getpeername()[:2] == (host, server.port)
            assert not sock.getblocking()
        await server.until(lambda: server.connections == 1 and server.open == 0)


async def test_who_is_refused_leaves_nothing_open(unused_port: int) -> None:
    before = descriptors()
    with pytest.raises(ConnectionRefusedError):
        await connect("127.0.0.1", unused_port)
    assert descriptors() == before


async def test_who_is_cancelled_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(sock: object, address: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    before = descriptors()
    task = asyncio.create_task(connect("127.0.0.1", 9))
    await asyncio.sleep(0)
    assert descriptors() == before + 1
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert descriptors() == before


@pytest.mark.parametrize("host", ["::1%lo", "::1%1"])
async def test_an_address_with_an_interface(host: str) -> None:
    async with serving(silent, "::1") as server:
        (await connect(host, server.port)).close()


async def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(OSError, match=r"nonexistent0|No such|no interface"):
        await connect("fe80::1%nonexistent0", 11434)
