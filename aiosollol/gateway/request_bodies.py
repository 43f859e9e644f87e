"""Request bodies, parsed so that large ones don't hold up other requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aiohttp import web

IN_LOOP = 64 << 10
"""Largest body, in bytes, parsed in the event loop. It takes 0.1 ms, and 50 ms at worst."""
LARGE = 1 << 20
"""Bytes from which a body is parsed after other large ones. Parsing one may take seconds."""

T = TypeVar("T")


class _BodyThreads:
    """Two threads: one for large bodies, and one for the others, which don't wait for those.

    More would not be faster, as only one runs at a time, and the event loop would wait for each.
    """

    def __init__(self) -> None:
        self._medium = ThreadPoolExecutor(1, thread_name_prefix="aiosollol-bodies")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="aiosollol-large-bodies")

    def choose(self, size: int) -> ThreadPoolExecutor:
        return self._medium if size < LARGE else self._large

    def stop(self) -> None:
        for worker in (self._medium, self._large):
            worker.shutdown(wait=False, cancel_futures=True)


_WORKERS = web.AppKey("aiosollol_bodies", _BodyThreads)


def add_workers(app: web.Application) -> None:
    """Give an application the threads in which `parse` parses bodies."""
    workers = app[_WORKERS] = _BodyThreads()

    async def stop(app: web.Application) -> None:
        workers.stop()

    app.on_cleanup.append(stop)


async def parse(request: web.Request, read: Callable[[bytes], T]) -> T:
    """The result of `read` for the body of a request, in a thread unless the body is small.

    Python switches threads every 5 ms, but not during a call into C: those must be short, however
    large the body (see `wire.json_slices`).
    """
    body = await request.read()
    if len(body) <= IN_LOOP or (workers := request.app.get(_WORKERS)) is None:
        return read(body)
    return await asyncio.get_running_loop().run_in_executor(workers.choose(len(body)), read, body)
