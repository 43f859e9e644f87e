"""Where the nodes of a run live, and how they are struck and healed: processes here, or a lab."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from aiosollol.testing import FakeOllamaProcess, Fault
from benchmarks.chaos.load import BATCH_TIMEOUT, BEGUN, CHATTER, DRAIN, EMBEDDER, WARM_UP
from benchmarks.chaos.scenes import NODES, Blow

if TYPE_CHECKING:
    from netlab import Host
    from netlab_program import Program

COSTS: dict[str, Any] = {
    "overhead": 0.005,
    "seconds_per_token": 0.0005,
    "seconds_per_chat_token": 0.004,
    "load_seconds": 0.3,
}
"""Of a fake: an embedding takes 0.01 to 0.06 s, 0.035 s in the mean, a chat 0.05 to 0.1 s. A model
is loaded as fast as a real Ollama loads a small one: who was killed must do that again."""
_START_SECONDS = 30.0


class Place(Protocol):
    """A context manager with nodes. `load` runs the callers: see `benchmarks.chaos.load`."""

    async def __aenter__(self) -> Place: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    async def strike(self, index: int, blow: Blow) -> None: ...
    async def heal(self, index: int, blow: Blow) -> None: ...
    async def load(self, order: dict[str, Any], begun: asyncio.Event) -> dict[str, Any]: ...


class Here:
    """Processes on loopback, `count` of them."""

    def __init__(self, count: int = NODES) -> None:
        self._count = count
        self._stack = AsyncExitStack()
        self._nodes: list[FakeOllamaProcess] = []

    async def __aenter__(self) -> Here:
        async with AsyncExitStack() as stack:
            self._nodes = list(
                await asyncio.gather(
                    *(stack.enter_async_context(_node(0)) for _ in range(self._count))
                )
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def strike(self, index: int, blow: Blow) -> None:
        if blow == "kill":
            self._nodes[index].kill()
        else:
            assert isinstance(blow, Fault)
            self._nodes[index].fault = blow

    async def heal(self, index: int, blow: Blow) -> None:
        if blow == "kill":
            port = int(self._nodes[index].url.rpartition(":")[2])
            self._nodes[index] = await self._stack.enter_async_context(_node(port))
        else:
            self._nodes[index].fault = None

    async def load(self, order: dict[str, Any], begun: asyncio.Event) -> dict[str, Any]:
        command = _command(order, [node.url for node in self._nodes])
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, limit=1 << 26
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(_limit(order)):
                await process.stdout.readline()
                begun.set()
                figures: dict[str, Any] = json.loads(await process.stdout.readline())
                return figures
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Lab:
    """Hosts of tests/support/netlab.py, which must be on the path. The callers have a host of their
    own."""

    def __init__(self) -> None:
        from netlab import NetLab

        self._lab = NetLab()
        self._hosts: list[Host] = []
        self._urls: list[str] = []

    async def __aenter__(self) -> Lab:
        await self._lab.__aenter__()
        try:
            options = [(f"--{name.replace('_', '-')}", str(cost)) for name, cost in COSTS.items()]
            options += [("--model", f"{each.name},{each.kind}") for each in (EMBEDDER, CHATTER)]
            for number in range(NODES):
                host = await self._lab.host(f"10.77.0.{11 + number}")
                program = await host.fake_ollama(*(word for pair in options for word in pair))
                self._hosts.append(host)
                self._urls.append(program.url)
        except BaseException:
            await self._lab.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._lab.aclose()

    async def strike(self, index: int, blow: Blow) -> None:
        await (self._hosts[index].cut() if blow == "cut" else self._hosts[index].drop())

    async def heal(self, index: int, blow: Blow) -> None:
        await self._hosts[index].heal()

    async def load(self, order: dict[str, Any], begun: asyncio.Event) -> dict[str, Any]:
        caller = await self._lab.host("10.77.0.100")
        command = _command(order, self._urls)
        program: Program = await caller.spawn(*command, ready=BEGUN, timeout=_START_SECONDS)
        begun.set()
        try:
            async with asyncio.timeout(_limit(order)):
                done = await program.wait()
        finally:
            await program.end()
        if done.returncode:
            raise RuntimeError(done.stderr)
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return figures


def _node(port: int) -> FakeOllamaProcess:
    return FakeOllamaProcess(models=[EMBEDDER, CHATTER], port=port, **COSTS)


def _command(order: dict[str, Any], urls: list[str]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.chaos.load", json.dumps({**order, "urls": urls})]


def _limit(order: dict[str, Any]) -> float:
    lasts = WARM_UP + order["seconds"] + max(DRAIN, BATCH_TIMEOUT)
    return float(_START_SECONDS + lasts + _START_SECONDS)
