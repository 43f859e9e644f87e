"""In the sidecar: the workers of one program, as Ray actors."""

from __future__ import annotations

import asyncio
import contextlib
from importlib import import_module
from typing import Any

from aiosollol.engines.ray_contract import DONE, LOST
from aiosollol.engines.ray_worker import WorkerActor
from aiosollol.errors import EngineError

GREET_SECONDS = 45.0
"""Until workers must have started: Python, this library, and a look at the nodes."""

_LOOK_SECONDS = 0.2


class WorkerGroup:
    """Workers that live until they are dismissed, or the sidecar ends. Starting takes a while."""

    def __init__(self, name: str, most: int, contract: bytes) -> None:
        ray: Any = import_module("ray")
        cores = int(ray.cluster_resources().get("CPU", 1))
        actor = ray.remote(WorkerActor).options(
            # They wait for nodes most of the time: a core kept free for each would be wasted, and
            # two programs would wait for each other's.
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=100,
            scheduling_strategy="SPREAD",
        )
        count = max(1, min(most, cores))
        names = [f"{name}-{number}" for number in range(1, count + 1)]
        self._actors: list[Any] = [actor.remote(each, contract) for each in names]
        self._stops: set[asyncio.Future[Any]] = set()

    async def greetings(self) -> list[bytes]:
        """What each worker says when it has started. Raises EngineError, and what Ray raises."""
        try:
            async with asyncio.timeout(GREET_SECONDS):
                return list(await asyncio.gather(*(one.greet.remote() for one in self._actors)))
        except TimeoutError:
            problem = f"started no worker within {GREET_SECONDS:g} s; is the cluster busy?"
            raise EngineError("ray", problem) from None

    async def greet(self, worker: int) -> bytes:
        """What one of them says when it has started anew."""
        from ray.exceptions import ActorUnavailableError

        while True:
            try:
                return bytes(await self._actors[worker].greet.remote())
            except ActorUnavailableError:
                await asyncio.sleep(_LOOK_SECONDS)

    async def run(self, worker: int, number: int, order: bytes) -> tuple[str, bytes]:
        """(DONE, result), or (LOST, why) if the worker died over it; then it begins anew."""
        from ray.exceptions import RayActorError

        actor = self._actors[worker]
        try:
            return DONE, await actor.run.remote(number, order)
        except RayActorError as error:
            return LOST, " ".join(str(error).split())[:300].encode()
        except asyncio.CancelledError:
            # Ray's own way depends on how far the task is; this ends what runs at the nodes.
            stop = asyncio.ensure_future(_quietly(actor.stop.remote(number)))
            self._stops.add(stop)
            stop.add_done_callback(self._stops.discard)
            raise

    async def aclose(self) -> None:
        """Dismiss them. What they have under way ends with them."""
        ray: Any = import_module("ray")
        actors, self._actors = self._actors, []
        for actor in actors:
            with contextlib.suppress(Exception):  # it is gone already, or the cluster is
                ray.kill(actor)


async def _quietly(work: Any) -> None:
    with contextlib.suppress(Exception):  # a worker that is gone has stopped
        await work
