"""The guards of conftest.py hold. No packet leaves: each is refused before it is made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import socket
from typing import Any

import aiohttp
import anyio
import blockbuster
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiosollol

FAR = "192.0.2.1"  # TEST-NET-1, routed nowhere (RFC 5737)
FAR6 = "2001:db8::1"


def take(forbidden: list[str]) -> list[str]:
    """What was refused; taken away, so that the test passes."""
    taken = list(forbidden)
    forbidden.clear()
    return taken


@pytest.mark.parametrize("address", [(FAR, 80), ("0.0.0.0", 80), ("example.com", 80)])
def test_connect_is_refused(address: tuple[str, int], forbidden: list[str]) -> None:
    with socket.socket() as sock:
        with pytest.raises(AssertionError, match="a packet to"):
            sock.connect(address)
        with pytest.raises(AssertionError, match="a packet to"):
            sock.connect_ex(address)
    assert len(take(forbidden)) == 2


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, (FAR, 9)),
        (socket.AF_INET, ("224.0.0.251", 5353)),
        (socket.AF_INET, ("255.255.255.255", 9)),
        (socket.AF_INET6, (FAR6, 9)),
        (socket.AF_INET6, (f"::ffff:{FAR}", 9)),
    ],
)
def test_datagram_is_refused(
    family: socket.AddressFamily, address: tuple[str, int], forbidden: list[str]
) -> None:
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError:
        pytest.skip("no IPv6 here")
    with sock:
        with pytest.raises(AssertionError, match="a packet to"):
            sock.sendto(b"x", address)
        with pytest.raises(AssertionError, match="a packet to"):
            sock.sendto(b"x", 0, address)
        with pytest.raises(AssertionError, match="a packet to"):
            sock.sendmsg([b"x"], [], 0, address)
    assert len(take(forbidden)) == 3


@pytest.mark.anyio
@pytest.mark.parametrize("url", [f"http://{FAR}/", f"http://[{FAR6}]/", "http://ollama.example/"])
async def test_aiohttp_is_refused(url: str, forbidden: list[str]) -> None:
    async with aiohttp.ClientSession() as session:
        with contextlib.suppress(aiohttp.ClientError, AssertionError):
            await session.get(url)
            pytest.fail("it was sent")
    assert take(forbidden)


@pytest.mark.anyio
async def test_asyncio_and_anyio_are_refused(forbidden: list[str]) -> None:
    with contextlib.suppress(OSError, AssertionError):
        await asyncio.open_connection(FAR, 80)
    assert take(forbidden)
    with contextlib.suppress(OSError, AssertionError, ExceptionGroup):
        await anyio.connect_tcp(FAR, 80)
    assert take(forbidden)


@pytest.mark.anyio
async def test_loopback_is_reached(forbidden: list[str]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with aiohttp.ClientSession() as session:
            for host in ("127.0.0.1", "localhost"):
                async with session.get(f"http://{host}:{port}/") as response:
                    assert await response.text() == "ok"
    assert not forbidden


def test_invalid_names_fail_without_a_query(forbidden: list[str]) -> None:
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("nowhere.invalid", 80)
    assert not forbidden


def made_in_package(source: str) -> Any:
    """The function `f` of `source`, as if it were in a file of the package."""
    # Blockbuster asks how the path begins; as a file of the package it would puzzle coverage.
    place = f"{pathlib.Path(aiosollol.__file__).parent}_made_up.py"
    scope: dict[str, Any] = {}
    exec(compile(source, place, "exec"), scope)
    return scope["f"]


@pytest.mark.anyio
async def test_blocking_call_of_the_package_is_refused(forbidden: list[str]) -> None:
    f = made_in_package("import time\nasync def f(): time.sleep(0)")
    with pytest.raises(blockbuster.BlockingError, match=r"time\.sleep"):
        await f()
    assert take(forbidden) == ["a blocking call in the event loop: time.sleep"]


@pytest.mark.anyio
async def test_the_package_may_log(forbidden: list[str], tmp_path: pathlib.Path) -> None:
    f = made_in_package("async def f(log): log.warning('down')")
    log = logging.getLogger("aiosollol.made_up")
    handler = logging.FileHandler(tmp_path / "log")
    log.addHandler(handler)
    try:
        await f(log)
    finally:
        log.removeHandler(handler)
        handler.close()
    assert (tmp_path / "log").read_text() == "down\n"
    assert not forbidden


@given(st.integers())
def test_hypothesis_accepts_the_guards(number: int) -> None:
    assert number == number + 0


def test_a_caught_refusal_fails_all_the_same(pytester: pytest.Pytester) -> None:
    here = pathlib.Path(__file__)
    pytester.makeconftest(here.with_name("conftest.py").read_text())
    pytester.makepyfile(
        f"""
        import contextlib, socket

        def test_that_hides_it():
            with socket.socket() as sock, contextlib.suppress(Exception):
                sock.connect(({FAR!r}, 80))

        def test_that_does_nothing():
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines([f"*the test made a packet to {FAR} port 80*"])


@pytest.mark.parametrize(("required", "outcome"), [("1", "failed"), ("", "skipped")])
def test_require(
    required: str, outcome: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = pathlib.Path(__file__)
    monkeypatch.setenv("AIOSOLLOL_REQUIRE_ALL", required)
    pytester.makeconftest(here.with_name("conftest.py").read_text())
    pytester.makepyfile(
        """
        def test_that_has_it(require):
            require("python3")

        def test_that_lacks_it(require):
            require("no-such-program", because="it is made up")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, **{outcome: 1})
