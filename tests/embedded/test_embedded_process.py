"""The process of an embedded node: it ends with its owner, its parent, or a signal."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys

import pytest

from aiosollol.embedded import EmbeddedNode
from aiosollol.errors import NodeTimeout
from aiosollol.net.subprocess import ServerProcess

pytest.importorskip("wordllama")
pytestmark = pytest.mark.anyio


async def test_its_process_is_gone_when_it_is_left() -> None:
    node = EmbeddedNode(process=True)
    async with node:
        pid = node.pid
        assert pid is not None
        os.kill(pid, 0)
        assert "in its own process" in repr(node)
    assert node.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_its_process_is_gone_when_the_start_is_cancelled() -> None:
    node = EmbeddedNode(process=True)
    entering = asyncio.create_task(node.__aenter__())
    while node.pid is None:
        await asyncio.sleep(0)
    pid = node.pid
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_process_that_is_never_ready_is_ended() -> None:
    process = ServerProcess("n", "http.server", ["--bind", "127.0.0.1", "0"], start_timeout=0.5)
    starting = asyncio.create_task(process.start())
    while process.pid is None:
        await asyncio.sleep(0)
    pid = process.pid
    with pytest.raises(NodeTimeout, match=r"not ready within 0\.5 s"):
        await starting
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process by its descriptor")
def test_its_process_ends_with_its_parent_however_that_dies() -> None:
    code = """
import asyncio, os, signal
from aiosollol.embedded import EmbeddedNode

async def main():
    async with EmbeddedNode(process=True) as node:
        print(node.pid, flush=True)
        input()
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        descriptor = os.pidfd_open(pid)
        try:
            parent.communicate("now\n", timeout=60)
            assert parent.returncode == -signal.SIGKILL
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            assert waiting.poll(60_000), "it still runs"
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_gracefully(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "aiosollol.embedded", "--port", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on http://127.0.0.1:")
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_without_a_pipe_it_does_not_watch_stdin() -> None:
    """A service manager gives it /dev/null, which ends at once."""
    with subprocess.Popen(
        [sys.executable, "-m", "aiosollol.embedded"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        code = f"import urllib.request as r; print(r.urlopen('{url}/api/tags').read().decode())"
        asked = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert json.loads(asked.stdout)["models"][0]["name"] == "wordllama:latest", asked.stderr
        process.terminate()
        assert process.wait(60) == 0
