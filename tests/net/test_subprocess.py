"""Processes that this one starts: how they end, and what is left of them."""

from __future__ import annotations

import asyncio
import signal

import pytest

from aiosollol.errors import NodeTimeout, NodeUnreachable
from aiosollol.net.subprocess import ChildProcess, ServerProcess, follow

pytestmark = pytest.mark.anyio

WAIT = "import sys; print('up', flush=True); sys.stdin.read()"
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
time.sleep(1e6)
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {DEAF!r}])"


class Reader:
    def __init__(self) -> None:
        self.is_up = asyncio.Event()
        self.has_ended = False

    async def read(self, child: ChildProcess) -> None:
        assert await child.stdout.readline() == b"up\n"
        self.is_up.set()
        await child.stdout.read()  # ends when no process has the other end any more
        self.has_ended = True


@pytest.mark.parametrize(
    ("program", "seconds", "number", "code"),
    [
        (WAIT, 60.0, None, 0),  # its stdin ends
        (WAIT, 60.0, signal.SIGTERM, None),
        (DEAF, 0.0, signal.SIGTERM, -signal.SIGKILL),
        (PARENT, 0.0, None, -signal.SIGKILL),
    ],
)
async def test_nothing_is_left_of_a_process(
    program: str, seconds: float, number: int | None, code: int | None
) -> None:
    reader = Reader()
    child = await ChildProcess.spawn(("-c", program), reader.read)
    await reader.is_up.wait()
    await child.end(seconds, number)
    assert reader.has_ended
    assert child.returncode is not None
    assert code is None or child.returncode == code
    child.write(b"nobody reads this")
    await child.end(seconds)


async def test_a_process_whose_end_is_cancelled_is_killed() -> None:
    reader = Reader()
    child = await ChildProcess.spawn(("-c", DEAF), reader.read)
    await reader.is_up.wait()
    ending = asyncio.create_task(child.end(1e6))
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    await child.wait()
    assert child.returncode == -signal.SIGKILL


async def test_a_start_that_is_cancelled_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began: list[asyncio.subprocess.Process] = []
    create = asyncio.create_subprocess_exec
    is_under_way = asyncio.Event()

    async def slowly(*arguments: str, **options: int) -> asyncio.subprocess.Process:
        is_under_way.set()
        began.append(await create(*arguments, **options))  # type: ignore[arg-type]
        return began[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    starting = asyncio.create_task(ChildProcess.spawn(("-c", DEAF), Reader().read))
    await is_under_way.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert began[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("module", "timeout", "error", "words"),
    [
        ("nowhere.at_all", 60.0, NodeUnreachable, "ended with code 1; it said: .*No module named"),
        ("this", 60.0, NodeUnreachable, "ended with code 0 and said nothing"),
        ("aiosollol.testing", 0.0, NodeTimeout, "not ready within 0 s"),
    ],
)
async def test_a_server_that_does_not_start_is_an_error(
    module: str, timeout: float, error: type[Exception], words: str
) -> None:
    process = ServerProcess("it", module, [], start_timeout=timeout)
    with pytest.raises(error, match=words):
        await process.start()
    assert process.pid is None


async def test_what_blocks_is_followed_in_a_thread() -> None:
    taken: list[int] = []
    has_ended = asyncio.Event()
    follow(iter(range(3)), has_ended.set, taken.append)
    await has_ended.wait()
    assert taken == [0, 1, 2]
