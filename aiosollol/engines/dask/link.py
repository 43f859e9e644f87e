"""The way to a cluster of Dask: one client, in this event loop. What it raises is ours."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import logging
import platform
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio

from aiosollol._version import __version__
from aiosollol.engines.common.remote_pool import Look, Terms
from aiosollol.engines.dask import worker as dask_worker
from aiosollol.errors import EngineError

if TYPE_CHECKING:  # it is hardly typed, and need not be there where types are checked
    distributed: Any
else:
    import distributed

CONNECT_SECONDS = 10.0
TELL_SECONDS = 10.0  # a worker that is told of new nodes asks them first, for 7 s at most
CLOSE_SECONDS = 3.0

log = logging.getLogger("aiosollol")


class DaskLink:
    """A connection to a scheduler, and through it to its workers. `connect` makes one.

    name: of what this client keeps in workers. scheduler: the address. begun: how often workers
    began with each partition, by its index; on_begun: called at each of these times. dashboard: an
    URL, None if there is none.
    """

    def __init__(self, client: Any, settings: Mapping[str, Any]) -> None:
        self.name = f"aiosollol-{uuid4().hex[:12]}"
        self.client = client
        self.scheduler: str = client.scheduler.address
        self.begun: Counter[int] = Counter()
        self.on_begun: Callable[[], None] | None = None
        self.dashboard: str | None = None
        self._settings = settings
        self._fetching: set[asyncio.Task[Any]] = set()

    @classmethod
    async def connect(cls, address: str, settings: Mapping[str, Any]) -> DaskLink:
        """A link to the scheduler at `address`. Raises EngineError if none answers within 10 s."""
        try:
            client = distributed.Client(
                address, asynchronous=True, set_as_default=False, timeout=CONNECT_SECONDS
            )
        except ValueError as error:
            raise _no_scheduler(address, str(error)) from error
        try:
            with anyio.fail_after(CONNECT_SECONDS + 1.0):
                await client
        except (OSError, TimeoutError, ValueError, ImportError) as error:
            await _close(client)
            raise _no_scheduler(address, str(error)) from error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _close(client)
            raise
        link = cls(client, settings)
        client.subscribe_topic(dask_worker.begun_topic(link.name), link._has_begun)
        try:
            await link._find_dashboard()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _close(client)
            raise
        return link

    def _has_begun(self, event: tuple[float, int]) -> None:
        self.begun[event[1]] += 1
        if self.on_begun is not None:
            self.on_begun()

    @property
    def is_up(self) -> bool:
        """Whether the scheduler is there."""
        return bool(self.client.status == "running")

    async def _find_dashboard(self) -> None:
        """Learn where people can watch, if the scheduler has that: it needs bokeh there."""
        with contextlib.suppress(Exception), anyio.move_on_after(CONNECT_SECONDS):
            has_bokeh = await self.client.run_on_scheduler(importlib.util.find_spec, "bokeh")
            if has_bokeh and "dashboard" in self.client.scheduler_info()["services"]:
                self.dashboard = str(self.client.dashboard_link)

    async def threads(self) -> dict[str, int]:
        """Each worker, by its address, and how many tasks it does at once. Raises EngineError."""
        try:
            with anyio.fail_after(TELL_SECONDS):
                return dict(await self.client.ncores())
        except Exception as error:  # a client that has given up has no scheduler to ask at all
            raise EngineError("dask", f"lost its scheduler at {self.scheduler}: {error}") from error

    async def greet(self, worker: str) -> None:
        """Make `worker` ready for this client. Raises EngineError if it cannot be of use."""
        # Functions of Python itself: what a worker without aiosollol can do, too.
        python = await self._run(worker, platform.python_version)
        if python.split(".")[:2] != platform.python_version().split(".")[:2]:
            raise EngineError(
                "dask",
                f"worker {worker} has Python {python}, and this program "
                f"{platform.python_version()}: run both with the same",
            )
        try:
            version = await self._run(worker, importlib.metadata.version, "aiosollol")
        except importlib.metadata.PackageNotFoundError:
            raise EngineError(
                "dask",
                f"worker {worker} does not have aiosollol: "
                f"pip install 'aiosollol[dask]=={__version__}' there",
            ) from None
        if version != __version__:
            raise EngineError(
                "dask",
                f"worker {worker} has aiosollol {version}, and this program {__version__}: "
                f"pip install 'aiosollol[dask]=={__version__}' there",
            )
        await self._run(worker, dask_worker.attach, self.name, self._settings)

    async def tell(self, worker: str, terms: Terms) -> Look | None:
        """Tell `worker` its terms; how it is. Raises EngineError."""
        look: Look | None = await self._run(worker, dask_worker.obey, self.name, terms)
        return look

    async def _run(self, worker: str, function: Callable[..., Any], *args: Any) -> Any:
        try:
            with anyio.fail_after(TELL_SECONDS):
                answers = await self.client.run(function, *args, workers=[worker])
            return answers[worker]
        except importlib.metadata.PackageNotFoundError:
            raise
        except Exception as error:
            words = str(error) or type(error).__name__
            raise EngineError("dask", f"worker {worker} cannot be used: {words}") from error

    def submit(self, function: Callable[..., Any], argument: Any, *, key: str, worker: str) -> Any:
        """A future of ``function(name, key, argument)``, at `worker` and nowhere else."""
        with warnings.catch_warnings():
            # Of texts in the graph: they are what there is to send, and bounded.
            warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
            return self.client.submit(
                function,
                self.name,
                key,
                argument,
                key=key,
                workers=[worker],
                # Else the scheduler may give it to any that is idle, also one that is of no use.
                allow_other_workers=False,
                pure=False,
            )

    async def result(self, future: Any) -> Any:
        """What the task of `future` returned, or raises what it raised. Releases it in any case.

        Nobody wants it any more then: a worker that is at it ends it, see `FarEndPlugin`. Raises
        `concurrent.futures.CancelledError` if somebody released it meanwhile.
        """
        # A client of Dask that is cancelled while it fetches a result leaves a task behind whose
        # error nobody hears. So it is not: to release the future ends it as well.
        fetching = asyncio.ensure_future(_fetched(future))
        self._fetching.add(fetching)
        fetching.add_done_callback(self._has_fetched)
        try:
            await asyncio.wait([fetching])
        finally:
            future.release()
        return fetching.result()

    def _has_fetched(self, fetching: asyncio.Task[Any]) -> None:
        self._fetching.discard(fetching)
        if not fetching.cancelled():
            fetching.exception()  # who has left does not hear it

    async def aclose(self) -> None:
        """Let the workers forget this client, and leave. Idempotent; takes 6 s at most."""
        if self.is_up:
            with contextlib.suppress(Exception), anyio.move_on_after(CLOSE_SECONDS):
                await self.client.run(dask_worker.detach, self.name, on_error="ignore")
        await _close(self.client)


async def _fetched(future: Any) -> Any:
    return await future


async def _close(client: Any) -> None:
    try:
        await asyncio.wait_for(client.close(), CLOSE_SECONDS)
    except Exception as error:  # it is of no use any more, however that went
        log.debug("the client of Dask did not close well: %s", error)


def _no_scheduler(address: str, words: str) -> EngineError:
    return EngineError(
        "dask",
        f"has no scheduler at {address} ({words}): start one with: dask scheduler; "
        "or leave dask_address out, for a cluster on this machine",
    )
