"""A `FakeOllama` in a process of its own, for benchmarks: it takes no time from this one."""

from __future__ import annotations

import contextlib
import os
import signal
from types import TracebackType
from typing import Unpack

from aiosollol.errors import InvalidInput
from aiosollol.server_process import ServerProcess
from aiosollol.testing.fault import Fault
from aiosollol.testing.model import FakeModel
from aiosollol.testing.node import DEFAULT_MODELS, ProcessOptions


class FakeOllamaProcess:
    """``python -m aiosollol.testing`` as a context manager with a `url`.

    Options as for `FakeNode`, those that can be told on a command line, and where to listen: `host`
    and `port` (0 takes a free one). They stay as they are while it runs, all but `fault`, and its
    counters are out of reach. It ends with this process, however this one ends. Entering raises
    NodeUnreachable or NodeTimeout, with what the process wrote to stderr, if it is not ready within
    `start_timeout` seconds.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        start_timeout: float = 30.0,
        **options: Unpack[ProcessOptions],
    ) -> None:
        if unknown := options.keys() - ProcessOptions.__annotations__.keys():
            raise TypeError(f"a fake in a process has no option {min(unknown)!r}")
        models = options.pop("models", DEFAULT_MODELS)
        arguments = ["--host", host, "--port", str(port)]
        for name, value in options.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        for model in [models] if isinstance(models, str) else models:
            made = FakeModel(model) if isinstance(model, str) else model
            arguments += ["--model", f"{made.name},{made.kind},{made.dim},{made.digest}"]
        self._process = ServerProcess(
            "fake", "aiosollol.testing", arguments, start_timeout=start_timeout
        )
        self._url = ""
        self._fault: Fault | None = None

    @property
    def url(self) -> str:
        """Where it answers. Raises InvalidInput before it is entered."""
        if not self._url:
            raise InvalidInput("the fake has not been started: use 'async with'")
        return self._url

    @property
    def pid(self) -> int | None:
        """The process, or None while there is none."""
        return self._process.pid

    @property
    def fault(self) -> Fault | None:
        """What is wrong with it; None heals it. The process obeys within a millisecond or so."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._fault = fault
        if self._url:  # otherwise it is told when it has been started
            self._process.tell(b"" if fault is None else fault.name.encode())

    def kill(self) -> None:
        """End it as ``kill -9`` does. Another may be started on its port at once."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def __aenter__(self) -> FakeOllamaProcess:
        self._url = await self._process.start()
        self.fault = self._fault
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._url = ""
        await self._process.aclose()
