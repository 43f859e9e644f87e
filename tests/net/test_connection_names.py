"""Connections: names of hosts, looked up and tried one after the other."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from connection_servers import (
    Names,
    asked,
    connections_to,
    polite,
    served,
    turns,
    until,
)

from aiosollol.net import connector

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


NOBODY = "::1"  # nobody listens there: servers here are at 127.0.0.1


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The names that there are."""
    return Names(monkeypatch)


async def test_a_name_is_looked_up_once_for_many(names: Names) -> None:
    async with served(polite) as server, connections_to(server.port, host="node") as connections:
        names.hosts["node"] = ["127.0.0.1"]
        made = await asyncio.gather(*(connections.make(5) for _ in range(10)))
        assert len(set(made)) == 10
        assert names.asked == 1


async def test_a_name_is_looked_up_again_when_it_leads_nowhere(names: Names) -> None:
    async with served(polite) as server, connections_to(server.port, host="node") as connections:
        with pytest.raises(socket.gaierror):
            await connections.make(5)
        names.hosts["node"] = [NOBODY]
        with pytest.raises(OSError):  # noqa: PT011  # refused, or no IPv6 at all
            await connections.make(5)
        names.hosts["node"] = ["127.0.0.1"]
        await connections.make(5)
        await connections.make(5)
        assert names.asked == 3
        names.hosts["node"] = []
        connections._dialer._known_until = 0.0
        with pytest.raises(OSError, match="no address"):
            await connections.make(5)


async def test_an_address_that_fails_is_followed_by_the_next(names: Names) -> None:
    async with served(polite) as server, connections_to(server.port, host="node") as connections:
        names.hosts["node"] = [NOBODY, NOBODY, "127.0.0.1"]
        assert (await asked(connections)).read() == b"{}"
        names.hosts["node"] = [NOBODY, NOBODY]
        connections._dialer._known_until = 0.0
        with pytest.raises(OSError):  # noqa: PT011
            await connections.make(5)


async def test_an_address_that_is_silent_does_not_hold_up_the_next(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = []

    async def reach(host: str) -> Any:
        if host == "::1":
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(host)
        return host, None

    monkeypatch.setattr(connector, "_NEXT_SECONDS", 0.0)
    assert await connector._first(reach, ["::1", "127.0.0.1"]) == ("127.0.0.1", None)
    await until(lambda: cancelled)


async def test_of_two_that_connect_at_once_one_is_closed() -> None:
    aborted = []

    class Transport:
        def __init__(self, host: str) -> None:
            self.host = host

        def abort(self) -> None:
            aborted.append(self.host)

    both = asyncio.Event()

    async def reach(host: str) -> Any:
        if host == "b":
            both.set()
        try:
            await both.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # it was there at the same moment
        return Transport(host), None

    dial_first: Any = connector._first
    async with asyncio.timeout(20):
        transport, _ = await dial_first(reach, ["a", "b"])
    await until(lambda: aborted)
    assert {transport.host, *aborted} == {"a", "b"}


async def test_who_is_cancelled_while_two_are_tried_ends_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = []

    async def reach(host: str) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(host)

    monkeypatch.setattr(connector, "_NEXT_SECONDS", 0.0)
    task = asyncio.ensure_future(connector._first(reach, ["a", "b"]))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: len(ended) == 2)


def test_families_take_turns() -> None:
    found = [(10, "::1"), (10, "::2"), (10, "::3"), (2, "127.0.0.1")]
    assert connector._interleaved(found) == ["::1", "127.0.0.1", "::2", "::3"]


@pytest.mark.parametrize(
    ("address", "host"),
    [
        (("127.0.0.1", 1), "127.0.0.1"),
        (("::1", 1, 0, 0), "::1"),
        (("fe80::1", 1, 0, 2), "fe80::1%2"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::1%eth0"),
    ],
)
def test_a_zone_stays_with_its_address(address: tuple[Any, ...], host: str) -> None:
    assert connector._as_host(address) == host
