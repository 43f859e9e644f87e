"""`EmbeddedNode` and `serve`: the embedded model on a port."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from aiosollol.core.address import Address
from aiosollol.embedded.app import make_app
from aiosollol.embedded.model import StaticModel
from aiosollol.errors import InvalidInput, MissingExtra
from aiosollol.net.error_log import loop_errors
from aiosollol.net.http_server import listening
from aiosollol.net.subprocess import ServerProcess, stopping


class EmbeddedNode:
    """A real small embedding model behind Ollama's API, for a machine without Ollama.

    ::

        async with EmbeddedNode() as node:
            ...  # ask node.url for the model "wordllama": 256 dimensions

    host, port: where to listen; port 0 picks a free one.
    name: its name in errors and `repr`.
    process: run it as a child process, which ends with this one, however this one ends.
    delay: extra seconds for each text, to simulate a slower machine.
    aliases: other names under which the model is served, such as "nomic-embed-text".
    start_timeout: seconds within which the process must be ready.

    Entering waits until it answers. Raises MissingExtra without the extra "embedded",
    InvalidInput if the port is taken or an option is invalid; with `process`, NodeUnreachable
    or NodeTimeout, with what the process wrote to stderr, if it does not start.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        name: str = "embedded",
        process: bool = False,
        delay: float = 0.0,
        aliases: Iterable[str] = (),
        start_timeout: float = 30.0,
    ) -> None:
        if not 0 <= delay < float("inf"):
            raise InvalidInput(f"delay must be a number of seconds, not {delay!r}")
        if not 0 <= port <= 65535:
            raise InvalidInput(f"port must be between 0 and 65535, not {port!r}")
        self.name = name
        self._host = host
        self._port = port
        self._delay = delay
        self._aliases = _names(aliases)
        self._process: ServerProcess | None = None
        if process:
            self._process = ServerProcess(
                name,
                "aiosollol.embedded",
                self._arguments(),
                start_timeout=start_timeout,
                # Compute on one core, as in this process.
                environment={"TOKENIZERS_PARALLELISM": "false"},
            )
        self._url = ""
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """Its URL: ``http://127.0.0.1:41234``. Raises InvalidInput before it is entered."""
        if not self._url:
            raise InvalidInput(f"the node {self.name!r} has not been started: use 'async with'")
        return self._url

    @property
    def pid(self) -> int | None:
        """The process that it runs in, where that is its own."""
        return self._process.pid if self._process is not None else None

    def __repr__(self) -> str:
        place = " in its own process" if self._process is not None else ""
        return f"<EmbeddedNode {self.name!r} {self._url or 'not started'}{place}>"

    async def __aenter__(self) -> EmbeddedNode:
        await asyncio.to_thread(_require_extra)
        if self._process is not None:
            self._url = await self._process.start()
            self._stack.push_async_callback(self._process.aclose)
        else:
            running = _running(self._host, self._port, self._aliases, self._delay, grace=0.1)
            self._url = await self._stack.enter_async_context(running)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._url = ""
        await self._stack.aclose()

    def _arguments(self) -> list[str]:
        arguments = ["--host", self._host, "--port", str(self._port), "--delay", str(self._delay)]
        for alias in self._aliases:
            arguments += ["--alias", alias]
        return arguments


async def serve(
    host: str = "127.0.0.1",
    port: int = 21434,
    *,
    aliases: Iterable[str] = (),
    delay: float = 0.0,
    on_ready: Callable[[str], None] | None = None,
    with_parent: bool = False,
) -> None:
    """Serve the embedded model until SIGINT or SIGTERM, then finish requests in progress.

    on_ready: called with the URL once it answers.
    with_parent: also stop when stdin is a pipe that ends.

    Raises InvalidInput if the port is taken, MissingExtra without the extra "embedded".
    """
    await asyncio.to_thread(_require_extra)
    with stopping(with_parent=with_parent) as stop, loop_errors("embedded node"):
        async with _running(host, port, _names(aliases), delay, grace=5.0) as url:
            if on_ready is not None:
                on_ready(url)
            await stop.wait()


@asynccontextmanager
async def _running(
    host: str, port: int, aliases: tuple[str, ...], delay: float, *, grace: float
) -> AsyncIterator[str]:
    """Run a server; gives its URL. At the end, requests have `grace` seconds to finish."""
    app = make_app(StaticModel(aliases), delay=delay)
    serving = listening(
        app, host, port, name="embedded node", grace=grace, handler_cancellation=True
    )
    async with serving as bound:
        yield Address("http", host, bound[1]).url


def _names(aliases: Iterable[str]) -> tuple[str, ...]:
    return (aliases,) if isinstance(aliases, str) else tuple(aliases)


def _require_extra() -> None:
    """Raise MissingExtra early, not in another thread or process."""
    if importlib.util.find_spec("wordllama") is None:
        raise MissingExtra("the embedded node", "embedded")
