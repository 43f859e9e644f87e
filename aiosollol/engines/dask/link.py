"""`DaskLink`: the connection to a Dask cluster, by one client in this event loop."""

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
from aiosollol.engines.dask import worker as dask_worker
from aiosollol.engines.remote_pool import Look, Terms
from aiosollol.errors import EngineError

if TYPE_CHECKING:  # hardly typed, and not required for type checking
    distributed: Any
else:
    import distributed

CONNECT_SECONDS = 10.0
TELL_SECONDS = 10.0  # a worker queries new nodes first, for 7 s at most
CLOSE_SECONDS = 3.0

log = logging.getLogger("aiosollol")


class DaskLink:
    """A connection to a scheduler, and through it to its workers. `connect` makes one.

    name: of this client's plugin in workers.
    scheduler: its address.
    begun: how often workers began each partition, by its index.
    on_begun: called each time.
    dashboard: its URL; None if there is none.
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
        """Whether the scheduler is connected."""
        return bool(self.client.status == "running")

    async def _find_dashboard(self) -> None:
        """Find the dashboard's URL, if the scheduler has one: it needs bokeh there."""
        with contextlib.suppress(Exception), anyio.move_on_after(CONNECT_SECONDS):
            has_bokeh = await self.client.run_on_scheduler(importlib.util.find_spec, "bokeh")
            if has_bokeh and "dashboard" in self.client.scheduler_info()["services"]:
                self.dashboard = str(self.client.dashboard_link)

    async def threads(self) -> dict[str, int]:
        """The threads of each worker, by its address. Raises EngineError."""
        try:
            with anyio.fail_after(TELL_SECONDS):
                return dict(await self.client.ncores())
        except Exception as error:  # also for a client that has lost its scheduler for good
            raise EngineError("dask", f"lost its scheduler at {self.scheduler}: {error}") from error

    async def greet(self, worker: str) -> None:
        """Prepare `worker` for this client. Raises EngineError if it cannot be used."""
        # Functions of the standard library, which a worker without aiosollol can run too.
        python = await self._run(worker, platform.python_version)
        if python.split(".")[:2] != platform.python_version().split(".")[:2]:
            raise EngineError(
                "dask",
                f"worker {worker} has Python {python}, and this program "
                f"{platform.python_version()}: use the same version for both",
            )
        try:
            version = await self._run(worker, importlib.metadata.version, "aiosollol")
        except importlib.metadata.PackageNotFoundError:
            raise EngineError(
                "dask",
                f"worker {worker} does not have aiosollol: "
                f"install version {__version__} with the extra dask there",
            ) from None
        if version != __version__:
            raise EngineError(
                "dask",
                f"worker {worker} has aiosollol {version}, and this program {__version__}: "
                f"install the same version there",
            )
        await self._run(worker, dask_worker.attach, self.name, self._settings)

    async def tell(self, worker: str, terms: Terms) -> Look | None:
        """Send `worker` its terms; its state. Raises EngineError."""
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
        """A future of ``function(name, key, argument)``, computed only by `worker`."""
        with warnings.catch_warnings():
            # About the texts in the graph, which must be sent, and are bounded.
            warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
            return self.client.submit(
                function,
                self.name,
                key,
                argument,
                key=key,
                workers=[worker],
                # Otherwise the scheduler may choose any idle worker, even an unusable one.
                allow_other_workers=False,
                pure=False,
            )

    async def result(self, future: Any) -> Any:
        """The result of the task of `future`, or its exception. Always releases the future.

        A worker that still computes it stops then, see `FarEndPlugin`. Raises
        `concurrent.futures.CancelledError` if the future was released meanwhile.
        """
        # A Dask client that is cancelled while it fetches a result leaves a task with an unhandled
        # error. So don't cancel it: releasing the future ends it too.
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
            fetching.exception()  # mark as retrieved: the caller may have left

    async def aclose(self) -> None:
        """Remove the plugin from the workers, and disconnect. Idempotent; takes at most 6 s."""
        if self.is_up:
            with contextlib.suppress(Exception), anyio.move_on_after(CLOSE_SECONDS):
                await self.client.run(dask_worker.detach, self.name, on_error="ignore")
        await _close(self.client)


async def _fetched(future: Any) -> Any:
    return await future


async def _close(client: Any) -> None:
    try:
        await asyncio.wait_for(client.close(), CLOSE_SECONDS)
    except Exception as error:  # the client is discarded in any case
        log.debug("closing the Dask client failed: %s", error)


def _no_scheduler(address: str, words: str) -> EngineError:
    return EngineError(
        "dask",
        f"has no scheduler at {address} ({words}): start one with: dask scheduler; "
        "or omit dask_address, for a cluster on this machine",
    )
