"""What every test gets, asked for or not.

- Async tests (marked `anyio`) run on asyncio; a module that wants trio's virtual clock overrides
  the fixture `anyio_backend`.
- Nothing is discovered, and no environment variable names a node.
- A packet to any address but loopback is refused before it leaves, and fails the test, whatever
  became of the exception.
- A call that blocks the event loop, made by aiosollol, fails the test in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import blockbuster
import pytest

if TYPE_CHECKING:
    from netlab import NetLab

pytest_plugins = ["pytester"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so. Programs that tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _empty_home(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, _empty_home: str) -> None:
    for name in os.environ:
        if name.startswith("SOLLOL_") or name in ("OLLAMA_HOST", "XDG_CONFIG_HOME"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOLLOL_AUTO_DISCOVER", "false")
    monkeypatch.setenv("HOME", _empty_home)  # with no settings and no file of nodes


@pytest.fixture
def require() -> Callable[..., None]:
    """``require("nginx")`` skips the test where the program is missing.

    ``require("ip", because="...")`` adds a reason. With AIOSOLLOL_REQUIRE_ALL=1, which CI sets,
    the test fails instead: there a test that did not run is not a test that passed.
    """

    def require(*programs: str, because: str = "") -> None:
        missing = [program for program in programs if shutil.which(program) is None]
        if not missing:
            return
        unmet(f"not installed: {', '.join(missing)}" + (f" ({because})" if because else ""))

    return require


def unmet(message: str) -> NoReturn:
    """Skip the test, or fail it where none may be skipped: see `require`."""
    if os.environ.get("AIOSOLLOL_REQUIRE_ALL") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture
async def netlab(request: pytest.FixtureRequest) -> AsyncIterator[NetLab]:
    """A network of real hosts, for tests marked `netlab`: see netlab.py."""
    from netlab import NetLab, why_no_lab

    assert request.node.get_closest_marker("netlab"), "mark it: pytest.mark.netlab"
    if problem := why_no_lab():
        unmet(f"no lab here: {problem}")
    async with NetLab() as lab:
        yield lab


class ForbiddenPacket(AssertionError):
    """A test tried to reach an address that is not loopback."""


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="session")
def _record() -> Iterator[list[str]]:
    """Guard sockets and blocking calls for the whole session; what they refuse is noted."""
    record: list[str] = []

    class RecordedBlockingError(blockbuster.BlockingError):
        def __init__(self, func: str) -> None:
            super().__init__(func)
            record.append(f"a blocking call in the event loop: {func}")

    with pytest.MonkeyPatch.context() as patch:
        guard_sockets(patch, record)
        with blockbuster.blockbuster_ctx("aiosollol") as buster:
            # Whoever logs writes to a stream, and pytest's own handler flushes it.
            for function in buster.functions.values():
                function.can_block_in("logging/__init__.py", "emit")
                function.can_block_in("coverage/collector.py", "lock_data")
                # A pool is made without an await, and its few settings are read by that.
                function.can_block_in("aiosollol/config/resolve.py", "resolve")
                # The first error for a missing extra reads one small file.
                function.can_block_in("aiosollol/_install.py", "install_command")
            patch.setattr("blockbuster.blockbuster.BlockingError", RecordedBlockingError)
            yield record


@pytest.fixture(autouse=True)
def forbidden(_record: list[str]) -> Iterator[list[str]]:
    """What the test did and should not have done. It fails at its end unless this is empty.

    The exceptions alone are not enough: code under test may well catch them.
    """
    yield _record
    done, _record[:] = "; ".join(_record), []
    if done:
        pytest.fail(f"the test made {done}", pytrace=False)


def guard_sockets(patch: pytest.MonkeyPatch, record: list[str]) -> None:
    """Let Python's sockets reach loopback only. asyncio and aiohttp connect through them too."""

    def refuse(what: str) -> None:
        record.append(what)
        raise ForbiddenPacket(what)

    def check(sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(str(address[0])):
            refuse(f"a packet to {address[0]} port {address[1]}")

    def connect(sock: socket.socket, address: Any) -> None:
        check(sock, address)
        real["connect"](sock, address)

    def connect_ex(sock: socket.socket, address: Any) -> Any:
        check(sock, address)
        return real["connect_ex"](sock, address)

    def sendto(sock: socket.socket, data: Any, *rest: Any) -> Any:
        check(sock, rest[-1])  # (data, address) or (data, flags, address)
        return real["sendto"](sock, data, *rest)

    def sendmsg(sock: socket.socket, *args: Any) -> Any:
        if len(args) > 3 and args[3] is not None:
            check(sock, args[3])
        return real["sendmsg"](sock, *args)

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name and name.endswith(".invalid"):  # resolves nowhere (RFC 6761), so ask nobody
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if name and name != "localhost" and not is_address(name):
            refuse(f"a DNS query for {name}")
        return real_getaddrinfo(host, *args, **kwargs)

    methods = (connect, connect_ex, sendto, sendmsg)
    real: dict[str, Any] = {m.__name__: getattr(socket.socket, m.__name__) for m in methods}
    real_getaddrinfo = socket.getaddrinfo
    for method in methods:
        patch.setattr(socket.socket, method.__name__, method)
    patch.setattr(socket, "getaddrinfo", getaddrinfo)
    with contextlib.suppress(ImportError):
        import uvloop

        # It connects and asks DNS in C, where nobody could refuse it. Commands that run as
        # processes of their own still use it.
        patch.setattr(uvloop, "new_event_loop", asyncio.new_event_loop)


@pytest.fixture
def unused_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
