"""FakeOllama servers with the costs of `SimNode`s, in a few processes, for benchmarks over HTTP.

A process serves up to 16 nodes; a node that will die has a process of its own. The servers sleep
for their costs, so they use little CPU: see `Cluster.cpu_seconds`.

    python -m benchmarks.cluster '[{"overhead": 0.001, "seconds_per_item": 0.01}]'

is such a process. It prints the URLs as JSON, then reads commands, lines of JSON, until stdin ends:
``{"node": 0, "seconds_per_item": 0.1}`` changes a cost, ``{"cpu": true}`` asks for the CPU seconds
so far.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import selectors
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

from aiosollol.testing import FakeModel, FakeOllama
from benchmarks.simulator import SimNode

MODEL = "nomic-embed-text"
DIM = 64
_NODES_PER_PROCESS = 16
_START_SECONDS = 30


class Cluster:
    """The servers of `nodes`, as a context manager. `urls` are in the order of the nodes."""

    def __init__(self, nodes: Sequence[SimNode]) -> None:
        self._nodes = nodes
        self._processes: list[asyncio.subprocess.Process] = []
        self.urls: list[str] = []
        # By process, the costs of its nodes; by node, its process and its place there.
        self._options: list[list[dict[str, float]]] = []
        self._places: list[tuple[int, int]] = []
        shared: list[dict[str, float]] | None = None
        for node in nodes:
            is_mortal = any(what == "die" for _, what in node.fate)
            if is_mortal or shared is None or len(shared) == _NODES_PER_PROCESS:
                home: list[dict[str, float]] = []
                self._options.append(home)
                shared = shared if is_mortal else home
            else:
                home = shared
            process = next(number for number, each in enumerate(self._options) if each is home)
            self._places.append((process, len(home)))
            home.append(_options(node, 1.0))

    async def __aenter__(self) -> Cluster:
        urls = []
        try:
            for options in self._options:
                process, its_urls = await _start(options)
                self._processes.append(process)
                urls.append(its_urls)
        except BaseException:
            await self._end()
            raise
        self.urls = [urls[process][place] for process, place in self._places]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end()

    def strike(self, index: int, what: float | str) -> None:
        """Let a node meet its fate: "die", or become so many times as slow as at first."""
        process, place = self._places[index]
        if isinstance(what, str):
            self._processes[process].kill()
        else:
            options = _options(self._nodes[index], what)
            self._tell(process, {"node": place, **options})

    async def heal(self, index: int) -> None:
        """Undo `strike`. A node that died has the same URL as before."""
        process, place = self._places[index]
        if self._processes[process].returncode is None:
            self.strike(index, 1.0)
            return
        port = int(self.urls[index].rpartition(":")[2])
        options = [{**self._options[process][place], "port": port}]
        self._processes[process], _ = await _start(options)

    async def cpu_seconds(self) -> list[float]:
        """Processor time of each process so far."""
        seconds = []
        for number, process in enumerate(self._processes):
            assert process.stdout is not None
            if process.returncode is None:
                self._tell(number, {"cpu": True})
                seconds.append(float(await process.stdout.readline()))
        return seconds

    def _tell(self, process: int, command: dict[str, Any]) -> None:
        stdin = self._processes[process].stdin
        assert stdin is not None
        stdin.write(json.dumps(command).encode() + b"\n")

    async def _end(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()  # it ends when its stdin does
        for process in self._processes:
            assert process.stdout is not None
            try:
                async with asyncio.timeout(5):
                    await process.stdout.read()
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _start(
    options: Sequence[dict[str, float]],
) -> tuple[asyncio.subprocess.Process, list[str]]:
    """A process and the URLs of its nodes. Raises RuntimeError if it ends instead."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.cluster", json.dumps(options)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_START_SECONDS):
            line = await process.stdout.readline()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    if not line:
        raise RuntimeError(f"a server process ended with code {await process.wait()}")
    return process, json.loads(line)


def _options(node: SimNode, slowness: float) -> dict[str, float]:
    return {
        "overhead": node.overhead * slowness,
        "seconds_per_item": node.per_item * slowness,
        "seconds_per_token": node.per_token * slowness,
    }


# In the process.


async def _serve(options: Sequence[dict[str, Any]]) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(FakeOllama(models=[FakeModel(MODEL, DIM)], **each))
            for each in options
        ]
        print(json.dumps([node.url for node in nodes]), flush=True)
        async for line in reader:
            command = json.loads(line)
            if "cpu" in command:
                print(time.process_time(), flush=True)
                continue
            node = nodes[command.pop("node")]
            for name, seconds in command.items():
                setattr(node, name, seconds)


def main() -> None:
    # select() sleeps to the microsecond, epoll() to the next millisecond: costs are to be exact.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        runner.run(_serve(json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
